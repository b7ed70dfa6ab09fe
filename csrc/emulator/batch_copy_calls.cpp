// Copies in batches: between host and device only, and in no order.

#include "emulator/copy_calls.h"
#include "emulator/entry.h"

namespace emu {
namespace {

struct Batch {
  void** dsts;
  size_t* dest_maxs;
  void** srcs;
  size_t* sizes;
  size_t count;
  aclrtMemcpyBatchAttr* attrs;
  size_t* attr_indexes;
  size_t attr_count;
  size_t* fail_index;
};

void check_batch(const Batch& batch) {
  not_null(batch.dsts, "dsts");
  not_null(batch.dest_maxs, "destMaxs");
  not_null(batch.srcs, "srcs");
  not_null(batch.sizes, "sizes");
  not_null(batch.attrs, "attrs");
  not_null(batch.attr_indexes, "attrsIndexes");
  if (batch.fail_index != nullptr) *batch.fail_index = SIZE_MAX;
  if (batch.count == 0 || batch.attr_count == 0 || batch.attr_count > batch.count) {
    fail(ACL_ERROR_RT_PARAM_INVALID, "%zu copies with %zu attributes", batch.count, batch.attr_count);
  }
  for (size_t i = 0; i < batch.attr_count; ++i) {
    const size_t before = i == 0 ? 0 : batch.attr_indexes[i - 1];
    if ((i == 0 && batch.attr_indexes[0] != 0) || (i != 0 && batch.attr_indexes[i] <= before) ||
        batch.attr_indexes[i] >= batch.count) {
      fail(ACL_ERROR_RT_PARAM_INVALID, "attrsIndexes must start at 0 and grow; entry %zu is %zu", i,
           batch.attr_indexes[i]);
    }
  }
}

bool is_device(const aclrtMemLocation& location, size_t attribute) {
  if (location.type == ACL_MEM_LOCATION_TYPE_DEVICE) return true;
  if (location.type == ACL_MEM_LOCATION_TYPE_HOST || location.type == ACL_MEM_LOCATION_TYPE_UNREGISTERED)
    return false;
  fail(ACL_ERROR_RT_PARAM_INVALID, "attrs[%zu]: location type %d", attribute, location.type);
}

// The attribute that holds for copy i says where its two ends are, and must be right.
void check_ends(const Batch& batch, size_t i, Where dst, Where src) {
  size_t attribute = 0;
  while (attribute + 1 < batch.attr_count && batch.attr_indexes[attribute + 1] <= i) ++attribute;
  const bool to_device = is_device(batch.attrs[attribute].dstLoc, attribute);
  const bool from_device = is_device(batch.attrs[attribute].srcLoc, attribute);
  if (is_host(dst) == is_host(src) || to_device == from_device) {
    fail(ACL_ERROR_RT_PARAM_INVALID, "%s to %s; a batch moves between host and device only", word(src),
         word(dst));
  }
  if (to_device == is_host(dst)) {
    fail(ACL_ERROR_RT_PARAM_INVALID, "attrs[%zu] says the other direction than %s to %s", attribute,
         word(src), word(dst));
  }
}

// The batch moves between host and device only; its order is undefined, so it runs as it comes.
template <class Submit>
aclError copy_batch(const Batch& batch, const char* call, Submit&& submit) {
  check_batch(batch);
  for (size_t i = 0; i < batch.count; ++i) {
    try {
      Copy copy;
      if (!make_row(copy, call, batch.dsts[i], batch.dest_maxs[i], batch.srcs[i], batch.sizes[i])) continue;
      const Where dst = locate(copy.dst, copy.width);
      const Where src = locate(copy.src, copy.width);
      check_ends(batch, i, dst, src);
      submit(copy, is_host(src) ? ACL_MEMCPY_HOST_TO_DEVICE : ACL_MEMCPY_DEVICE_TO_HOST);
    } catch (Error& error) {
      if (batch.fail_index != nullptr) *batch.fail_index = i;
      error.message = text("copy %zu: %s", i, error.message.c_str());
      throw;
    }
  }
  return ACL_SUCCESS;
}

aclError batch_sync(const char* call, const Batch& batch) {
  return copy_batch(batch, call, [](const Copy& copy, aclrtMemcpyKind kind) { copy_sync(copy, kind); });
}

aclError batch_async(const char* call, aclrtStream stream, const Batch& batch) {
  return copy_batch(batch, call,
                    [stream](const Copy& copy, aclrtMemcpyKind kind) { copy_async(copy, kind, stream); });
}

}  // namespace
}  // namespace emu

using namespace emu;

aclError aclrtMemcpyBatch(void** dsts, size_t* destMaxs, void** srcs, size_t* sizes, size_t numBatches,
                          aclrtMemcpyBatchAttr* attrs, size_t* attrsIndexes, size_t numAttrs,
                          size_t* failIndex) {
  return ENTER(aclrtMemcpyBatch, {
    not_null(failIndex, "failIndex");
    return batch_sync("aclrtMemcpyBatch",
                      {dsts, destMaxs, srcs, sizes, numBatches, attrs, attrsIndexes, numAttrs, failIndex});
  });
}

aclError aclrtMemcpyBatchV2(void** dsts, size_t* destMaxs, void** srcs, size_t* sizes, size_t numBatches,
                            aclrtMemcpyBatchAttr* attrs, size_t* attrsIndexes, size_t numAttrs) {
  return ENTER(aclrtMemcpyBatchV2, {
    return batch_sync("aclrtMemcpyBatchV2",
                      {dsts, destMaxs, srcs, sizes, numBatches, attrs, attrsIndexes, numAttrs, nullptr});
  });
}

aclError aclrtMemcpyBatchAsync(void** dsts, size_t* destMaxs, void** srcs, size_t* sizes, size_t numBatches,
                               aclrtMemcpyBatchAttr* attrs, size_t* attrsIndexes, size_t numAttrs,
                               size_t* failIndex, aclrtStream stream) {
  return ENTER(aclrtMemcpyBatchAsync, {
    not_null(failIndex, "failIndex");
    return batch_async("aclrtMemcpyBatchAsync", stream,
                       {dsts, destMaxs, srcs, sizes, numBatches, attrs, attrsIndexes, numAttrs, failIndex});
  });
}

aclError aclrtMemcpyBatchAsyncV2(void** dsts, size_t* destMaxs, void** srcs, size_t* sizes, size_t numBatches,
                                 aclrtMemcpyBatchAttr* attrs, size_t* attrsIndexes, size_t numAttrs,
                                 aclrtStream stream) {
  return ENTER(aclrtMemcpyBatchAsyncV2, {
    return batch_async("aclrtMemcpyBatchAsyncV2", stream,
                       {dsts, destMaxs, srcs, sizes, numBatches, attrs, attrsIndexes, numAttrs, nullptr});
  });
}
