#pragma once

#include <array>
#include <cstddef>
#include <vector>

#include "emulator/copy.h"

namespace emu {

// Short copies that stand behind one another in a stream's queue, none of which touches what another one
// writes: they may move in any order, so several threads share them, and who needs the memory behind them
// looks it up once.
class CopyRow {
 public:
  static constexpr size_t kMost = 32;
  static constexpr size_t kLongest = size_t{2} << 20;    // a longer one is shared by itself
  static constexpr size_t kMostBytes = size_t{4} << 20;  // some 0.4 ms: a stream is not aborted meanwhile

  // False, and the row stays as it is, where the copy has to wait for those before it, is none of a row, or
  // fails: whoever runs it by itself hears why.
  bool add(const Copy& copy, const Device& from);
  size_t size() const { return size_; }
  // Moves the bytes of all. `more_to_come` as in `move`.
  void move(bool more_to_come);
  void clear();

 private:
  struct Entry {
    Copy copy;
    std::byte* dst;
    std::byte* src;
    size_t first_part;
  };

  bool waits_for_others(const Copy& copy) const;
  bool hold(const Copy& copy, const Device& from, Entry& entry);
  static void move_part_of(const void* row, size_t part);

  std::array<Entry, kMost> entries_;
  size_t size_ = 0;
  size_t bytes_ = 0;
  size_t parts_ = 0;
  std::vector<Pin> held_;
  size_t dst_pin_ = 0;  // of the latest copy, in held_
  size_t src_pin_ = 0;
};

}  // namespace emu
