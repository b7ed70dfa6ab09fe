#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "emulator/acl_headers.h"

namespace emu {

class Block;
class Context;
class Device;
class Stream;
struct TaskFacts;

enum class Direction : uint8_t { H2D, D2H, D2D, Peer, H2H };

// Where an address lies. What lies in the device range counts as device memory also when it is not live:
// that is found out by the task that touches it.
enum class Where : uint8_t { Device, Imported, Pinned, Pageable };
Where locate(uintptr_t address, size_t length);

inline bool is_host(Where where) { return where == Where::Pinned || where == Where::Pageable; }

// `height` rows of `width` bytes.
struct Copy {
  uintptr_t dst = 0;
  uintptr_t src = 0;
  size_t width = 0;
  size_t height = 1;
  size_t dst_pitch = 0;
  size_t src_pitch = 0;
  Direction direction = Direction::H2H;
  const char* call = "";  // the entry point that asked for it
  bool queued = false;    // the device moves it, later: host memory must be registered then

  size_t dst_span() const { return height == 0 ? 0 : (height - 1) * dst_pitch + width; }
  size_t src_span() const { return height == 0 ? 0 : (height - 1) * src_pitch + width; }
  size_t bytes() const { return width * height; }
  // One of `pieces` parts that together are the whole.
  Copy piece(size_t index, size_t pieces) const;
  void describe(TaskFacts& facts) const;
};

// A place in live memory, held as long as this exists.
struct Pin {
  std::shared_ptr<Block> block;
  std::vector<std::shared_ptr<Block>> more;  // where the place spans several mapped blocks
  std::shared_ptr<const void> registration;  // of ordinary host memory that the device reaches by itself
  std::byte* host = nullptr;
};

enum class Touch : uint8_t { Read, Write };

// For tasks: holds the bytes behind an address or says why that is impossible. `from`: the device that
// touches. Ordinary host memory is not looked at: the program answers for it while it waits.
aclError pin(uintptr_t address, size_t length, const Device& from, Pin& out, std::string& why,
             Touch touch = Touch::Write);

// The same for both ends of a copy.
aclError pin(const Copy& copy, const Device& from, Pin& dst, Pin& src, std::string& why);

// The bytes [begin, end) of a copy whose ends are held, counted row by row.
void move_part(const Copy& copy, std::byte* dst, const std::byte* src, size_t begin, size_t end);
// The bytes of a word that may be waited for are moved at once; false when it is not a copy of one.
bool move_word(const Copy& copy, const Pin& dst, const Pin& src);

// Moves the bytes, here and now: what is long on several threads, of which the last one to end ends it. The
// code that the task fails with, and why. `more_to_come`: other copies are queued behind it, so that it pays
// to wake threads for them.
aclError move(const Copy& copy, const Device& from, std::string& why, bool more_to_come = false);

}  // namespace emu
