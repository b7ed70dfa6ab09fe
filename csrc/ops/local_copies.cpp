// The ops that copy inside this process: copy_cache, copy_blocks, swap_blocks. With an NPU's status they are
// queued on its current stream, with a CPU status (all tensors are in host memory then) they copy at once.
#include <torch/library.h>

#include <algorithm>
#include <memory>
#include <span>
#include <vector>

#include "acl/queue.h"
#include "cache/local_copy.h"
#include "link/engine.h"
#include "messages/messages.h"
#include "ops/arguments.h"
#include "ops/queue.h"
#include "ops/span.h"
#include "python_error.h"

namespace datadist {
namespace {

// A refused copy puts LLM_FAILED in the status.
struct QueueCopies {
  LocalCopies copies;
  aclrtStream stream;
  void* status;
  char* failed;

  void run() const {
    if (queue_local_copies(copies, stream) != 0) acl::queue_copy(status, failed, sizeof(int32_t), stream);
  }
};

void queue_copies(const char* asked, const at::Tensor& status, LocalCopies copies) {
  const OpSpan span([&] {
    size_t count = 0;
    size_t bytes = 0;
    copies.for_each([&](const LocalCopy& copy) {
      ++count;
      bytes += copy.bytes;
      return aclError{0};
    });
    return join(asked, " copies=", count, " bytes=", bytes);
  });
  if (status.device().is_cpu()) {
    require_int32(status, asked);
    make_local_copies(copies);
    return;
  }
  const int device = status.device().index();
  require_status(status, device, asked);
  const StreamInUse stream(device);
  require_no_capture(stream, asked);
  if (copies.empty()) return;
  queue(asked,
        QueueCopies{std::move(copies), stream.raw, status.data_ptr(), Engine::of(device)->failed_status()});
}

void require_local(const at::Tensor& status, at::TensorList tensors, const char* name, const char* asked) {
  for (const at::Tensor& tensor : tensors) {
    if (!(tensor.device().is_cpu() || tensor.device() == status.device()))
      refuse(Message::bad_value,
             {{"name", join(asked, ": the device of a tensor of ", name)},
              {"value", tensor.device().str()},
              {"expected", join(status.device().str(), ", where the status is, or the CPU")}});
  }
}

void require_as_many(at::TensorList dst, at::TensorList src, const char* asked) {
  if (dst.size() != src.size())
    refuse(Message::copy_of_unequal_lists, {{"asked", asked}, {"value", src.size()}, {"count", dst.size()}});
}

BlockLists lists_of(const BlockIds& src, const BlockIds& dst) {
  return {src.ids, src.length, dst.ids, dst.length, 0, 0};
}

// Ids of blocks that there are not are left to the plan.
void require_one_role_each(at::TensorList cache, const BlockIds& src, const BlockIds& dst,
                           const char* asked) {
  int64_t blocks = 0;
  for (const at::Tensor& tensor : cache) blocks = std::max(blocks, tensor.dim() > 0 ? tensor.size(0) : 0);
  thread_local std::vector<char> marks;  // all 0 between two calls; bits would take longer
  if (marks.size() < static_cast<size_t>(blocks)) marks.resize(blocks);
  char* const is_source = marks.data();
  const auto is_a_block = [blocks](int64_t id) {
    return static_cast<uint64_t>(id) < static_cast<uint64_t>(blocks);
  };
  const std::span srcs(src.ids, src.length);
  const std::span dsts(dst.ids, std::min(src.length, dst.length));
  for (const int64_t id : srcs) {
    if (is_a_block(id)) is_source[id] = 1;
  }
  int64_t both = -1;
  for (size_t i = 0; i < dsts.size(); ++i) {
    const int64_t id = dsts[i];
    if (is_a_block(id) && is_source[id] && id != srcs[i] && both < 0) both = id;
  }
  for (const int64_t id : srcs) {
    if (is_a_block(id)) is_source[id] = 0;
  }
  if (both >= 0) refuse(Message::copy_is_undefined, {{"asked", asked}, {"value", both}});
}

void copy_cache(const at::Tensor& status, at::TensorList dst, at::TensorList src, int64_t dst_batch,
                int64_t src_batch, int64_t offset, int64_t size) {
  as_python_error([&] {
    const char* asked = "copy_cache";
    require_as_many(dst, src, asked);
    require_local(status, dst, "the destination", asked);
    require_local(status, src, "the source", asked);
    LocalCopies copies(asked);
    for (size_t t = 0; t < src.size(); ++t) {
      const int64_t src_stride = stride_of(src[t], "the source", asked);
      const int64_t dst_stride = stride_of(dst[t], "the destination", asked);
      if (!(src_batch >= 0 && src_batch < src[t].size(0)))
        refuse(Message::copy_entry_outside, {{"asked", asked},
                                             {"name", "src_batch_index"},
                                             {"value", src_batch},
                                             {"side", "source"},
                                             {"count", src[t].size(0)}});
      if (!(dst_batch >= 0 && dst_batch < dst[t].size(0)))
        refuse(Message::copy_entry_outside, {{"asked", asked},
                                             {"name", "dst_batch_index"},
                                             {"value", dst_batch},
                                             {"side", "destination"},
                                             {"count", dst[t].size(0)}});
      const int64_t bytes = size == -1 ? src_stride - offset : size;
      if (!(offset >= 0 && bytes > 0 && offset <= src_stride - bytes && offset <= dst_stride - bytes))
        refuse(Message::copy_part_outside, {{"asked", asked},
                                            {"value", offset},
                                            {"size", size},
                                            {"tensor", t},
                                            {"src", src_stride},
                                            {"dst", dst_stride}});
      copies.add(dst[t], dst_batch * dst_stride + offset, src[t], src_batch * src_stride + offset, bytes);
    }
    queue_copies(asked, status, std::move(copies));
  });
}

void copy_blocks(const at::Tensor& status, at::TensorList cache, const at::Tensor& src_blocks,
                 const at::Tensor& dst_blocks) {
  as_python_error([&] {
    const char* asked = "copy_blocks";
    require_local(status, cache, "the cache", asked);
    const BlockIds src(src_blocks, "src_blocks", asked);
    const BlockIds dst(dst_blocks, "dst_blocks", asked);
    LocalCopies copies(asked);
    copies.begin_blocks(lists_of(src, dst));
    require_one_role_each(cache, src, dst, asked);
    for (const at::Tensor& tensor : cache) copies.add_blocks(tensor, tensor);
    queue_copies(asked, status, std::move(copies));
  });
}

void swap_blocks(const at::Tensor& status, at::TensorList src_cache, at::TensorList dst_cache,
                 const at::Tensor& src_blocks, const at::Tensor& dst_blocks) {
  as_python_error([&] {
    const char* asked = "swap_blocks";
    require_as_many(dst_cache, src_cache, asked);
    require_local(status, dst_cache, "the destination", asked);
    require_local(status, src_cache, "the source", asked);
    const BlockIds src(src_blocks, "src_blocks", asked);
    const BlockIds dst(dst_blocks, "dst_blocks", asked);
    LocalCopies copies(asked);
    copies.begin_blocks(lists_of(src, dst));
    for (size_t t = 0; t < src_cache.size(); ++t) copies.add_blocks(dst_cache[t], src_cache[t]);
    queue_copies(asked, status, std::move(copies));
  });
}

}  // namespace

TORCH_LIBRARY_IMPL(torch_llm_datadist, PrivateUse1, m) {
  m.impl("copy_cache", &copy_cache);
  m.impl("copy_blocks", &copy_blocks);
  m.impl("swap_blocks", &swap_blocks);
}

TORCH_LIBRARY_IMPL(torch_llm_datadist, CPU, m) {
  m.impl("copy_cache", &copy_cache);
  m.impl("copy_blocks", &copy_blocks);
  m.impl("swap_blocks", &swap_blocks);
}

}  // namespace datadist
