#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>

namespace emu {

class AddressSpace;
class Import;
class Physical;
class Stack;
class WaitHints;

enum class Place : uint8_t { Device, Imported, Pinned };

// One live range of emulated addresses. Whoever holds it keeps the bytes mapped: freeing takes the address
// out of service at once, and the mapping goes when the last task that touches it is done.
class Block : public std::enable_shared_from_this<Block> {
 public:
  Block(AddressSpace& space, Place place, uintptr_t base, size_t size, size_t mapped, int32_t device, int fd);
  ~Block();
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;

  bool contains(uintptr_t address, size_t length) const {
    return address >= base && length <= size && address - base <= size - length;
  }
  // Who waits for words of this block; mapped when first asked for, null where that is impossible.
  WaitHints* wait_hints();
  // The memfd, by a number that is the same in all processes (its inode); 0: there is none.
  uint64_t file() const;
  // Where the byte behind an address lies in the memfd.
  uint64_t file_offset(uintptr_t address) const { return address - base + offset; }
  // Where this process itself may touch the bytes behind an address of this block.
  std::byte* host(uintptr_t address) const;

  const Place place;
  const uintptr_t base;  // what the program holds
  const size_t size;     // bytes that may be touched
  const size_t mapped;   // the same in whole pages
  const int32_t device;  // as this process counts them; -1 for pinned and for devices it does not see
  const int fd;          // memfd with the bytes; -1 for pinned
  uint64_t offset = 0;   // of the first byte in the memfd
  std::atomic<bool> freed{false};
  std::shared_ptr<const Stack> made;   // by whom; null unless somebody asks for stacks
  std::shared_ptr<Import> import;      // set for Place::Imported
  bool peer_enabled = false;           // imported with ENABLE_PEER_ACCESS
  size_t page = 4096;                  // of the page table behind it
  std::shared_ptr<Physical> physical;  // what is mapped here, in a range of aclrtReserveMemAddress

  // What aclrtMemSetAccess said, a bit per device of this process; where it said nothing the usual rules
  // hold.
  std::atomic<uint64_t> granted{0};
  std::atomic<uint64_t> not_read{0};
  std::atomic<uint64_t> not_written{0};

 private:
  AddressSpace& space_;
  mutable std::atomic<uint64_t> file_{0};
  std::atomic<WaitHints*> wait_hints_{nullptr};
};

}  // namespace emu
