#include "emulator/copy.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>

#include "emulator/block.h"
#include "emulator/bulk_copy.h"
#include "emulator/copy_engines.h"
#include "emulator/device.h"
#include "emulator/error.h"
#include "emulator/facts.h"
#include "emulator/host_memory.h"
#include "emulator/ipc_memory.h"
#include "emulator/runtime.h"
#include "emulator/value.h"

namespace emu {
namespace {

aclError check_reach(const Block& block, const Device& from, Touch touch, std::string& why) {
  const uint64_t bit = uint64_t{1} << from.id;
  if (((touch == Touch::Read ? block.not_read : block.not_written).load() & bit) != 0) [[unlikely]] {
    why = text("aclrtMemSetAccess keeps device %d from %s memory at 0x%zx", from.id,
               touch == Touch::Read ? "reading" : "writing", block.base);
    return ACL_ERROR_RT_SYS_DMA;
  }
  if ((block.granted.load() & bit) != 0) {
    return block.import == nullptr ? ACL_SUCCESS : block.import->check_open(why);
  }
  if (block.import != nullptr) return block.import->check(from, block.peer_enabled, why);
  if (block.place == Place::Device && !from.may_access(block.device)) {
    why = text("device %d has no access to memory of device %d (aclrtDeviceEnablePeerAccess)", from.id,
               block.device);
    return ACL_ERROR_RT_PARAM_INVALID;
  }
  return ACL_SUCCESS;
}

}  // namespace

// Words are moved whole: a copy of 8 bytes is how a flag is written where a value write is refused.
bool move_word(const Copy& copy, const Pin& dst, const Pin& src) {
  if (copy.bytes() != sizeof(uint64_t) || copy.height != 1) return false;
  if (dst.block == nullptr || dst.block->place == Place::Pinned) return false;
  if (((reinterpret_cast<uintptr_t>(dst.host) | reinterpret_cast<uintptr_t>(src.host)) & 7) != 0)
    return false;
  const uint64_t word =
      std::atomic_ref(*reinterpret_cast<uint64_t*>(src.host)).load(std::memory_order_acquire);
  store_word(*dst.block, copy.dst, word);
  return true;
}

#if defined(__SANITIZE_THREAD__)

namespace {

// Tasks of several streams may race for device memory, which is left out (tests/cpp/threads.supp). What a
// copy does to the host's memory is not: it goes through a buffer, so that the two are told apart.
[[gnu::noinline]] void touch_device_memory(void* dst, const void* src, size_t length) {
  std::memmove(dst, src, length);
}

void move_bytes(Direction direction, std::byte* dst, const std::byte* src, size_t length) {
  if (direction == Direction::H2H) {
    std::memmove(dst, src, length);
  } else if (direction != Direction::H2D && direction != Direction::D2H) {
    touch_device_memory(dst, src, length);
  } else {
    std::array<std::byte, 1024> buffer;
    for (size_t at = 0; at < length; at += buffer.size()) {
      const size_t part = std::min(length - at, buffer.size());
      if (direction == Direction::H2D) {
        std::memcpy(buffer.data(), src + at, part);
        touch_device_memory(dst + at, buffer.data(), part);
      } else {
        touch_device_memory(buffer.data(), src + at, part);
        std::memcpy(dst + at, buffer.data(), part);
      }
    }
  }
}

}  // namespace

#else

namespace {

void move_bytes(Direction direction, std::byte* dst, const std::byte* src, size_t length) {
  (direction == Direction::D2H ? bulk_copy_into_caches : bulk_copy)(dst, src, length);
}

}  // namespace

#endif

void move_part(const Copy& copy, std::byte* dst, const std::byte* src, size_t begin, size_t end) {
  while (begin < end) {
    const size_t row = begin / copy.width;
    const size_t column = begin % copy.width;
    const size_t length = std::min(end - begin, copy.width - column);
    move_bytes(copy.direction, dst + row * copy.dst_pitch + column, src + row * copy.src_pitch + column,
               length);
    begin += length;
  }
}

Where locate(uintptr_t address, size_t length) {
  const Runtime& runtime = Runtime::get();
  if (runtime.memory.in_range(Place::Device, address)) return Where::Device;
  if (runtime.memory.in_range(Place::Imported, address)) return Where::Imported;
  if (runtime.memory.in_range(Place::Pinned, address)) return Where::Pinned;
  return runtime.host_memory->contains(address, length) ? Where::Pinned : Where::Pageable;
}

namespace {

// Physical blocks that are mapped one after the other form one range, for the device and for us.
aclError pin_mapped(uintptr_t address, size_t length, const Device& from, Touch touch, Pin& out,
                    std::string& why) {
  const uintptr_t end = address + length;
  for (uintptr_t next = out.block->base + out.block->size; next < end;) {
    auto block = Runtime::get().memory.find(next);
    if (block == nullptr || block->physical == nullptr || block->base != next) {
      why = text("[0x%zx, +%zu) is mapped up to 0x%zx only", address, length, next);
      return ACL_ERROR_RT_SYS_DMA;
    }
    if (const aclError code = check_reach(*block, from, touch, why); code != ACL_SUCCESS) return code;
    next += block->size;
    out.more.push_back(std::move(block));
  }
  return ACL_SUCCESS;
}

}  // namespace

aclError pin(uintptr_t address, size_t length, const Device& from, Pin& out, std::string& why, Touch touch) {
  Runtime& runtime = Runtime::get();
  const bool emulated = runtime.memory.in_range(Place::Device, address) ||
                        runtime.memory.in_range(Place::Imported, address) ||
                        runtime.memory.in_range(Place::Pinned, address);
  if (!emulated) {  // ordinary host memory, which the program answers for
    out.host = reinterpret_cast<std::byte*>(address);
    return ACL_SUCCESS;
  }
  out.block = runtime.memory.find(address);
  if (out.block == nullptr) {
    why = text("0x%zx is not in live memory: %s", address, runtime.memory.story_of(address).c_str());
    return ACL_ERROR_RT_SYS_DMA;
  }
  if (out.block->physical != nullptr) {
    if (const aclError code = pin_mapped(address, length, from, touch, out, why); code != ACL_SUCCESS)
      return code;
  } else if (!out.block->contains(address, length)) {
    why = text("[0x%zx, +%zu) runs out of its allocation: %s", address, length,
               runtime.memory.story_of(address).c_str());
    return ACL_ERROR_RT_SYS_DMA;
  }
  if (const aclError code = check_reach(*out.block, from, touch, why); code != ACL_SUCCESS) return code;
  if (const aclError code = from.error.check(address, length, why); code != ACL_SUCCESS) return code;
  out.host = out.block->host(address);
  return ACL_SUCCESS;
}

namespace {

// Pages that are no longer registered may be gone altogether.
aclError hold_registration(const Copy& copy, uintptr_t address, size_t length, Pin& out, std::string& why) {
  if (!copy.queued || out.block != nullptr) return ACL_SUCCESS;
  out.registration = Runtime::get().host_memory->hold(address, length);
  if (out.registration != nullptr) return ACL_SUCCESS;
  why = text("host memory [0x%zx, +%zu) was unregistered before the copy ran", address, length);
  return ACL_ERROR_RT_SYS_DMA;
}

}  // namespace

aclError pin(const Copy& copy, const Device& from, Pin& dst, Pin& src, std::string& why) {
  aclError code = pin(copy.dst, copy.dst_span(), from, dst, why);
  if (code == ACL_SUCCESS) code = hold_registration(copy, copy.dst, copy.dst_span(), dst, why);
  if (code == ACL_SUCCESS) code = pin(copy.src, copy.src_span(), from, src, why, Touch::Read);
  if (code == ACL_SUCCESS) code = hold_registration(copy, copy.src, copy.src_span(), src, why);
  return code;
}

namespace {

// To tell one thread of a part, and to hear that it is done, takes as long as moving some KiB.
constexpr size_t kLeastToShare = 64 << 10;
constexpr size_t kLeastPart = 32 << 10;
constexpr size_t kMostPart = 512 << 10;
// Moving this much takes longer than waking a thread.
constexpr size_t kLeastToWake = 1 << 20;

// Whether its parts may move in any order. Rows of a slab that are spread as those that they are copied to
// may lie between them.
bool is_divisible(const Copy& copy) {
  if (copy.dst + copy.dst_span() <= copy.src || copy.src + copy.src_span() <= copy.dst) return true;
  if (copy.height == 1 || copy.dst_pitch != copy.src_pitch) return false;
  const size_t apart = (copy.dst > copy.src ? copy.dst - copy.src : copy.src - copy.dst) % copy.dst_pitch;
  return apart >= copy.width && apart + copy.width <= copy.dst_pitch;
}

struct Shared {
  const Copy& copy;
  const Pin& dst;
  const Pin& src;
  size_t part_bytes;

  static void move(const void* work, size_t part) {
    const auto& [copy, dst, src, part_bytes] = *static_cast<const Shared*>(work);
    const size_t begin = part * part_bytes;
    move_part(copy, dst.host, src.host, begin, std::min(begin + part_bytes, copy.bytes()));
  }
};

void move_all(const Copy& copy, const Pin& dst, const Pin& src, bool more_to_come) {
  const size_t bytes = copy.bytes();
  if (bytes < kLeastToShare || !is_divisible(copy)) {
    move_part(copy, dst.host, src.host, 0, bytes);
    return;
  }
  const size_t part_bytes = std::clamp(bytes / 16 & ~(kLeastPart - 1), kLeastPart, kMostPart);
  const Shared shared{copy, dst, src, part_bytes};
  Runtime::get().copy_engines->run((bytes + part_bytes - 1) / part_bytes, &Shared::move, &shared,
                                   more_to_come || bytes >= kLeastToWake);
}

}  // namespace

aclError move(const Copy& copy, const Device& from, std::string& why, bool more_to_come) {
  Pin dst;
  Pin src;
  if (const aclError code = pin(copy, from, dst, src, why); code != ACL_SUCCESS) return code;
  if (!move_word(copy, dst, src)) move_all(copy, dst, src, more_to_come);
  Runtime::get().bytes_copied.fetch_add(copy.bytes(), std::memory_order_relaxed);
  return ACL_SUCCESS;
}

void Copy::describe(TaskFacts& facts) const {
  facts.name = call;
  facts.kind = TaskKind::Copy;
  facts.reads.push_back({src, width, height, src_pitch});
  facts.writes.push_back({dst, width, height, dst_pitch});
  facts.bytes = bytes();
  facts.direction = direction;
}

Copy Copy::piece(size_t index, size_t pieces) const {
  Copy part = *this;
  const size_t whole = height == 1 ? width : height;
  const size_t begin = whole * index / pieces;
  const size_t end = whole * (index + 1) / pieces;
  if (height == 1) {
    part.dst += begin;
    part.src += begin;
    part.width = end - begin;
  } else {
    part.dst += begin * dst_pitch;
    part.src += begin * src_pitch;
    part.height = end - begin;
  }
  return part;
}

}  // namespace emu
