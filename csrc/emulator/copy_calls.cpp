#include "emulator/copy_calls.h"

#include "emulator/capture.h"
#include "emulator/context.h"
#include "emulator/device.h"
#include "emulator/entry.h"
#include "emulator/faults.h"
#include "emulator/host_memory.h"
#include "emulator/interleaving.h"
#include "emulator/ipc_memory.h"
#include "emulator/observer.h"
#include "emulator/runtime.h"
#include "emulator/stream.h"

namespace emu {
namespace {

constexpr size_t kMaxWidth = 5'000'000;
constexpr size_t kMaxHeight = 5'242'880;

Context& current() { return *Thread::self().context; }

uintptr_t address(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer); }

}  // namespace

const char* word(Where where) {
  switch (where) {
    case Where::Device:
      return "device memory";
    case Where::Imported:
      return "imported device memory";
    case Where::Pinned:
      return "pinned host memory";
    default:
      return "pageable host memory";
  }
}

namespace {

Direction direction_of(Where dst, Where src, const Copy& copy) {
  if (is_host(dst)) return is_host(src) ? Direction::H2H : Direction::D2H;
  if (is_host(src)) return Direction::H2D;
  if (dst == Where::Imported || src == Where::Imported) return Direction::Peer;
  const auto to = Runtime::get().memory.find(copy.dst);
  const auto from = Runtime::get().memory.find(copy.src);
  if (to == nullptr || from == nullptr) return Direction::D2D;
  // What is imported as a handle is mapped among the process's own memory.
  const bool leaves = to->import != nullptr || from->import != nullptr || to->device != from->device;
  return leaves ? Direction::Peer : Direction::D2D;
}

// Throws unless device `from` may reach both ends. Addresses that are not live are left to the task.
void check_peers(const Copy& copy, const Device& from) {
  for (const uintptr_t end : {copy.dst, copy.src}) {
    const auto block = Runtime::get().memory.find(end);
    if (block == nullptr || block->place != Place::Device || block->import != nullptr ||
        from.may_access(block->device) || (block->granted.load() >> from.id & 1) != 0) {
      continue;
    }
    fail(ACL_ERROR_RT_PARAM_INVALID,
         "0x%zx is memory of device %d, and device %d did not call aclrtDeviceEnablePeerAccess for it", end,
         block->device, from.id);
  }
}

struct Ends {
  Where dst;
  Where src;
};

// Imported from a process that has it on another device. On the importer's own device it is like its own.
bool is_remote(Where where, uintptr_t end) {
  if (where != Where::Imported) return false;
  const auto block = Runtime::get().memory.find(end);
  return block == nullptr || block->import == nullptr || !block->import->lies_on(current().device);
}

// What the pointers are decides; of the kind only these things matter.
Ends check_kind(const Copy& copy, aclrtMemcpyKind kind, bool async) {
  const Ends ends{locate(copy.dst, copy.dst_span()), locate(copy.src, copy.src_span())};
  const bool remote = is_remote(ends.dst, copy.dst) || is_remote(ends.src, copy.src);
  const bool host = is_host(ends.dst) || is_host(ends.src);
  if (remote && (host || kind != ACL_MEMCPY_DEVICE_TO_DEVICE || !async)) {
    fail(ACL_ERROR_RT_PARAM_INVALID,
         "kind %d, %s to %s%s: imported memory of another device takes part in asynchronous DEVICE_TO_DEVICE "
         "copies only",
         kind, word(ends.src), word(ends.dst), async ? "" : " (synchronous)");
  }
  if (kind == ACL_MEMCPY_DEVICE_TO_DEVICE && host) {
    fail(ACL_ERROR_RT_PARAM_INVALID, "kind DEVICE_TO_DEVICE with %s as source and %s as destination",
         word(ends.src), word(ends.dst));
  }
  return ends;
}

// A device may not write what was registered for it to read.
void check_writable(const Copy& copy, Where dst) {
  if (dst != Where::Pinned) return;
  const auto flags = Runtime::get().host_memory->flags_of(copy.dst, copy.dst_span());
  if (flags && (*flags & ACL_HOST_REG_READONLY) != 0) {
    fail(ACL_ERROR_RT_PARAM_INVALID, "0x%zx was registered with ACL_HOST_REG_READONLY", copy.dst);
  }
}

void move_now(const Copy& copy, const Device& from) {
  std::string why;
  const HostWork watched([&](TaskFacts& facts) { copy.describe(facts); });
  const aclError code =
      is_armed(kCopyFaults) ? Runtime::get().faults->move(copy, from, nullptr, why) : move(copy, from, why);
  if (code != ACL_SUCCESS) fail(code, "%s", why.c_str());
}

class CopyTask final : public Task {
 public:
  explicit CopyTask(const Copy& copy) : Task(copy.call), copy_(copy) {}

  aclError run(Stream& stream) override {
    std::string why;
    const Device& device = stream.context().device;
    const aclError code = is_armed(kCopyFaults) ? Runtime::get().faults->move(copy_, device, &stream, why)
                                                : move_on(stream, why);
    if (code != ACL_SUCCESS) stream.explain(std::move(why));
    return code;
  }
  void describe(TaskFacts& facts) const override { copy_.describe(facts); }
  bool is_copy() const override { return true; }
  const Copy* as_copy() const override { return &copy_; }
  bool writes_flag() const override { return copy_.bytes() == sizeof(uint64_t); }
  bool is_brief() const override { return copy_.bytes() <= kBriefBytes; }

 private:
  // At once, or with random interleaving piece by piece: others see it half done.
  aclError move_on(Stream& stream, std::string& why) const {
    const Device& device = stream.context().device;
    Interleaving* const random = stream.interleaving();
    const size_t pieces = random == nullptr ? 1 : random->pieces(copy_.bytes());
    const bool overlaps =
        copy_.dst < copy_.src + copy_.src_span() && copy_.src < copy_.dst + copy_.dst_span();
    if (pieces == 1 || overlaps) return move(copy_, device, why, stream.has_behind(Stream::kRow));
    for (size_t i = 0; i < pieces; ++i) {
      if (const aclError code = move(copy_.piece(i, pieces), device, why); code != ACL_SUCCESS) return code;
      if (i + 1 < pieces && !stream.pass_time(random->hold())) return ACL_ERROR_RT_STREAM_ABORT;
    }
    return ACL_SUCCESS;
  }

  static constexpr size_t kBriefBytes = 4 << 10;

  const Copy copy_;
};

constexpr size_t kDevicePiece = size_t{4} << 30;

// The runtime cuts long copies into tasks, each with its place in the queue.
void submit_pieces(Stream& stream, const Copy& whole) {
  const bool with_host = whole.direction == Direction::H2D || whole.direction == Direction::D2H;
  const size_t piece = with_host ? Runtime::get().config.profile.host_copy_piece() : kDevicePiece;
  if (whole.height != 1 || whole.width <= piece) [[likely]] {
    stream.submit(std::make_shared<CopyTask>(whole));
    return;
  }
  for (size_t done = 0; done < whole.width; done += piece) {
    Copy part = whole;
    part.dst += done;
    part.src += done;
    part.width = std::min(piece, whole.width - done);
    stream.submit(std::make_shared<CopyTask>(part));
  }
}

}  // namespace

aclError copy_async(Copy copy, aclrtMemcpyKind kind, aclrtStream handle) {
  auto stream = current().stream(handle);
  const Ends ends = check_kind(copy, kind, true);
  if (is_host(ends.dst) && is_host(ends.src)) {
    fail(ACL_ERROR_RT_FEATURE_NOT_SUPPORT, "both addresses are host memory");
  }
  copy.direction = direction_of(ends.dst, ends.src, copy);
  check_peers(copy, current().device);
  check_writable(copy, ends.dst);
  if (ends.dst == Where::Pageable || ends.src == Where::Pageable) {
    Runtime::get().captures->check_unsafe(ACL_ERROR_RT_CAPTURE_MODE_BLOCK_ASYNC);
    if (stream->is_capturing()) {
      fail(ACL_ERROR_RT_PARAM_INVALID, "pageable host memory in a capture: allocate it with aclrtMallocHost");
    }
    // The device cannot read pages that may move: wait for the stream, then copy while the caller waits.
    stream->synchronize(std::nullopt);
    move_now(copy, current().device);
    return ACL_SUCCESS;
  }
  copy.queued = true;
  submit_pieces(*stream, copy);
  return ACL_SUCCESS;
}

aclError copy_sync(Copy copy, aclrtMemcpyKind kind) {
  Runtime::get().captures->check_unsafe(ACL_ERROR_RT_CAPTURE_MODE_NOT_SUPPORT);
  const Ends ends = check_kind(copy, kind, false);
  copy.direction = direction_of(ends.dst, ends.src, copy);
  check_peers(copy, current().device);
  move_now(copy, current().device);
  return ACL_SUCCESS;
}

bool make_row(Copy& copy, const char* call, void* dst, size_t dest_max, const void* src, size_t count) {
  if (count == 0 || dst == src) return false;
  not_null(dst, "dst");
  not_null(src, "src");
  if (count > dest_max)
    fail(ACL_ERROR_RT_PARAM_INVALID, "count %zu is more than destMax %zu", count, dest_max);
  copy = {.dst = address(dst), .src = address(src), .width = count, .call = call};
  return true;
}

namespace {

void check_async_kind(aclrtMemcpyKind kind) {
  if (kind >= ACL_MEMCPY_HOST_TO_HOST && kind <= ACL_MEMCPY_HOST_TO_BUF_TO_DEVICE) return;
  fail(ACL_ERROR_INVALID_PARAM, "kind %d; the asynchronous copy takes 0 to 5", kind);
}

void check_sync_kind(aclrtMemcpyKind kind) {
  if (kind >= ACL_MEMCPY_HOST_TO_HOST && kind <= ACL_MEMCPY_DEFAULT) return;
  fail(ACL_ERROR_INVALID_PARAM, "kind %d; the synchronous copy takes 0 to 4", kind);
}

bool make_rows(Copy& copy, const char* call, void* dst, size_t dpitch, const void* src, size_t spitch,
               size_t width, size_t height, aclrtMemcpyKind kind) {
  if (kind < ACL_MEMCPY_HOST_TO_DEVICE || kind > ACL_MEMCPY_DEFAULT) {
    fail(ACL_ERROR_INVALID_PARAM, "kind %d; the 2-D copy takes 1 to 4", kind);
  }
  if (width > dpitch || width > spitch) {
    fail(ACL_ERROR_RT_PARAM_INVALID, "width %zu is more than dpitch %zu or spitch %zu", width, dpitch,
         spitch);
  }
  if (width > kMaxWidth || height > kMaxHeight) {
    fail(ACL_ERROR_RT_PARAM_INVALID, "%zu bytes x %zu rows; the most is %zu x %zu", width, height, kMaxWidth,
         kMaxHeight);
  }
  if (width == 0 || height == 0) return false;
  not_null(dst, "dst");
  not_null(src, "src");
  copy = {.dst = address(dst),
          .src = address(src),
          .width = width,
          .height = height,
          .dst_pitch = dpitch,
          .src_pitch = spitch,
          .call = call};
  return true;
}

}  // namespace
}  // namespace emu

using namespace emu;

aclError aclrtMemcpy(void* dst, size_t destMax, const void* src, size_t count, aclrtMemcpyKind kind) {
  return ENTER(aclrtMemcpy, {
    on_memory(Entry::aclrtMemcpy, dst, src, count);
    Copy copy;
    check_sync_kind(kind);
    return make_row(copy, "aclrtMemcpy", dst, destMax, src, count) ? copy_sync(copy, kind) : ACL_SUCCESS;
  });
}

aclError aclrtMemcpyAsync(void* dst, size_t destMax, const void* src, size_t count, aclrtMemcpyKind kind,
                          aclrtStream stream) {
  return ENTER(aclrtMemcpyAsync, {
    on_memory(Entry::aclrtMemcpyAsync, dst, src, count);
    Copy copy;
    check_async_kind(kind);
    return make_row(copy, "aclrtMemcpyAsync", dst, destMax, src, count) ? copy_async(copy, kind, stream)
                                                                        : ACL_SUCCESS;
  });
}

aclError aclrtMemcpyAsyncWithCondition(void* dst, size_t destMax, const void* src, size_t count,
                                       aclrtMemcpyKind kind, aclrtStream stream) {
  return ENTER(aclrtMemcpyAsyncWithCondition, {
    on_memory(Entry::aclrtMemcpyAsyncWithCondition, dst, src, count);
    Copy copy;
    check_async_kind(kind);
    if (!make_row(copy, "aclrtMemcpyAsyncWithCondition", dst, destMax, src, count)) return ACL_SUCCESS;
    return copy_async(copy, kind, stream);
  });
}

aclError aclrtMemcpy2d(void* dst, size_t dpitch, const void* src, size_t spitch, size_t width, size_t height,
                       aclrtMemcpyKind kind) {
  return ENTER(aclrtMemcpy2d, {
    on_memory(Entry::aclrtMemcpy2d, dst, src, width * height);
    Copy copy;
    if (!make_rows(copy, "aclrtMemcpy2d", dst, dpitch, src, spitch, width, height, kind)) return ACL_SUCCESS;
    return copy_sync(copy, kind);
  });
}

aclError aclrtMemcpy2dAsync(void* dst, size_t dpitch, const void* src, size_t spitch, size_t width,
                            size_t height, aclrtMemcpyKind kind, aclrtStream stream) {
  return ENTER(aclrtMemcpy2dAsync, {
    on_memory(Entry::aclrtMemcpy2dAsync, dst, src, width * height);
    Copy copy;
    if (!make_rows(copy, "aclrtMemcpy2dAsync", dst, dpitch, src, spitch, width, height, kind))
      return ACL_SUCCESS;
    return copy_async(copy, kind, stream);
  });
}
