#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "emulator/facts.h"

namespace emu {
class Block;
}

namespace emu::watch {

// Bytes by what they are, not by where a process sees them: two mappings of one memory give the same spot, in
// this process and in others.
struct Spot {
  uint64_t file = 0;  // inode of the memfd; 0: host memory of this process, by its address
  uint64_t begin = 0;
  uint64_t end = 0;
  std::byte* host = nullptr;           // where this process may touch the first byte
  std::shared_ptr<const Block> block;  // null: registered host memory
};

// Calls visit(const Spot&) for each connected piece of the range. What is not live device memory, pinned or
// registered is left out.
class Places {
 public:
  template <class Visit>
  static void each(const Range& range, Visit&& visit) {
    for (size_t row = 0; row < range.rows; ++row) {
      uintptr_t at = range.address + row * range.pitch;
      for (size_t left = range.width; left > 0;) {
        Spot spot;
        const size_t found = piece(at, left, spot);
        if (found == 0) break;
        if (spot.end > spot.begin) visit(static_cast<const Spot&>(spot));
        at += found;
        left -= found;
      }
    }
  }
  // The file, and the place of a whole block there.
  static Spot whole(const Block& block);
  // The word that the ranges are, if they are one.
  static std::optional<uint64_t> word_at(const std::vector<Range>& ranges);
  // Another process reads or writes it, too, or may.
  static bool is_imported(const Block& block);
  static bool is_exported(const Block& block);

 private:
  static size_t piece(uintptr_t at, size_t length, Spot& out);
};

}  // namespace emu::watch
