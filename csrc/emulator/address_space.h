#pragma once

#include <array>
#include <deque>
#include <map>
#include <mutex>
#include <shared_mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "emulator/block.h"
#include "emulator/read_write_lock.h"

namespace emu {

// The emulated address ranges of this process, one reservation:
//
//   [ device | imported | pinned | aliases of device and imported ]
//
// Device and imported addresses are PROT_NONE for good, so a stray host access crashes as it would be wrong
// on hardware. The bytes are mapped once more, at a constant distance, for tasks and emulated compute.
class AddressSpace {
 public:
  // Room is counted in chunks: each block starts at a chunk of its own, and the chunk after it stays empty.
  static constexpr size_t kChunk = size_t{2} << 20;

  // New memory of this process. Throws Error when the host gives none.
  std::shared_ptr<Block> create(Place place, size_t size, size_t page, int32_t device);
  // Another process's memory, mapped shared; takes the descriptor over.
  std::shared_ptr<Block> adopt(int fd, uint64_t offset, size_t size, int32_t device,
                               std::shared_ptr<Import> import, bool peer_enabled);
  // Addresses without memory, and what aclrtMapMem puts there.
  uintptr_t reserve_range(size_t size);
  void release_range(uintptr_t base, size_t size) { give_back(Place::Device, base, size); }
  std::shared_ptr<Block> map_physical(uintptr_t base, std::shared_ptr<Physical> physical);
  // A memfd of that size, and behind it room for who waits (WaitHints). All are whole pages.
  static int new_memory(size_t size);
  // Its number, the same in all processes; 0 when there is none.
  static uint64_t file_of(int fd);
  // Out of service; null when `base` is not the start of a live block of that kind.
  std::shared_ptr<Block> release(Place place, uintptr_t base);

  // The live block around the address, or null.
  std::shared_ptr<Block> find(uintptr_t address) const;
  // True for any address inside the range, live or not.
  bool in_range(Place place, uintptr_t address) const;
  std::byte* alias(uintptr_t address) const {
    return reinterpret_cast<std::byte*>(address + alias_distance_);
  }
  // The address behind an alias; other addresses as they are.
  uintptr_t device_address(uintptr_t address) const {
    const uintptr_t begin = begin_.load(std::memory_order_acquire);
    if (begin == 0 || address < begin + alias_distance_) return address;
    const uintptr_t behind = address - alias_distance_;
    return behind < range(Place::Imported).end ? behind : address;
  }

  size_t live_blocks() const;
  std::vector<std::shared_ptr<Block>> all() const;
  // What is known of an address that is not in live memory, for messages; with stacks, if they are asked for.
  std::string story_of(uintptr_t address) const;

 private:
  friend class Block;

  struct Freed {
    uintptr_t base;
    size_t size;
    std::shared_ptr<const Stack> made;
    std::shared_ptr<const Stack> freed;
  };
  static constexpr size_t kFreedKept = 512;

  struct Range {
    uintptr_t begin = 0;
    uintptr_t end = 0;
    uintptr_t cursor = 0;                 // next fit: an address is used again as late as possible
    std::map<uintptr_t, uintptr_t> free;  // begin -> end
  };

  void reserve();  // on first use; a process that only counts devices maps nothing
  uintptr_t take(Range& range, size_t length);
  void give_back(Place place, uintptr_t base, size_t mapped);
  std::shared_ptr<Block> publish(std::shared_ptr<Block> block);
  void map(Place place, uintptr_t base, size_t mapped, int fd, uint64_t offset);
  void unmap(Place place, uintptr_t base, size_t mapped);
  Range& range(Place place) { return ranges_[static_cast<size_t>(place)]; }
  const Range& range(Place place) const { return ranges_[static_cast<size_t>(place)]; }

  std::once_flag reserved_;
  std::atomic<uintptr_t> begin_{0};  // 0 until reserved
  uintptr_t end_ = 0;
  uintptr_t alias_distance_ = 0;
  Block** chunks_ = nullptr;  // chunk number -> block that starts or lies there

  mutable ReadWriteLock blocks_mutex_;
  std::unordered_map<uintptr_t, std::shared_ptr<Block>> blocks_;
  std::deque<Freed> freed_;  // the last ones
  std::mutex room_mutex_;
  std::array<Range, 3> ranges_;
};

}  // namespace emu
