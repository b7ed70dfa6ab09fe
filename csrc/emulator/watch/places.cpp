#include "emulator/watch/places.h"

#include <algorithm>
#include <atomic>

#include "emulator/block.h"
#include "emulator/host_memory.h"
#include "emulator/ipc_memory.h"
#include "emulator/runtime.h"
#include "emulator/virtual_memory.h"

namespace emu::watch {

Spot Places::whole(const Block& block) {
  if (block.place == Place::Pinned) return {0, block.base, block.base + block.size, nullptr, nullptr};
  const uint64_t offset = block.file_offset(block.base);
  return {block.file(), offset, offset + block.size, nullptr, nullptr};
}

size_t Places::piece(uintptr_t at, size_t length, Spot& out) {
  const Runtime& runtime = Runtime::get();
  auto held = runtime.memory.find(at);
  if (held == nullptr) {
    if (!runtime.host_memory->contains(at, length)) return 0;
    out = {0, at, at + length, reinterpret_cast<std::byte*>(at), nullptr};
    return length;
  }
  const size_t found = std::min(length, static_cast<size_t>(held->base + held->size - at));
  const uint64_t begin = held->place == Place::Pinned ? at : held->file_offset(at);
  out = {held->file(), begin, begin + found, held->host(at), held};
  return found;
}

std::optional<uint64_t> Places::word_at(const std::vector<Range>& ranges) {
  std::optional<uint64_t> value;
  if (ranges.size() != 1) return value;
  each(ranges[0], [&](const Spot& spot) {
    if (spot.end - spot.begin != sizeof(uint64_t) || spot.begin % sizeof(uint64_t) != 0) return;
    value = std::atomic_ref(*reinterpret_cast<uint64_t*>(spot.host)).load(std::memory_order_acquire);
  });
  return value;
}

bool Places::is_imported(const Block& block) { return block.import != nullptr; }

bool Places::is_exported(const Block& block) {
  const auto owner =
      block.physical == nullptr ? block.base : reinterpret_cast<uintptr_t>(block.physical.get());
  return Runtime::get().exports->has(owner);
}

}  // namespace emu::watch
