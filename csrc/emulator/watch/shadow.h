#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <unordered_map>
#include <vector>

#include "emulator/watch/clock.h"
#include "emulator/watch/origin.h"

namespace emu::watch {

// One task's touch of some bytes.
struct Access {
  uint32_t line = 0;
  uint64_t at = 0;
  OriginPtr origin;
};

// For each byte of memory the last write, and the reads since then that nobody waited for. Memory is named by
// a file (the memfd behind it; 0: host memory) and an offset there.
class Shadow {
 public:
  struct Conflict {
    uint64_t begin;
    uint64_t end;
    const Access& earlier;
    bool earlier_wrote;
  };
  using Found = std::function<void(const Conflict&)>;

  // Compares with what is known, and remembers.
  void read(uint64_t file, uint64_t begin, uint64_t end, const Access& access, const Clock& now,
            const Found& found);
  void write(uint64_t file, uint64_t begin, uint64_t end, const Access& access, const Clock& now,
             const Found& found);
  void forget(uint64_t file, uint64_t begin, uint64_t end);

  size_t pieces() const { return pieces_; }

 private:
  // Beyond this the file's history is dropped: races may be missed, memory stays bounded.
  static constexpr size_t kMostPieces = size_t{1} << 18;

  struct Piece {
    uint64_t end = 0;
    bool written = false;
    Access write;
    std::vector<Access> reads;
  };
  using Pieces = std::map<uint64_t, Piece>;

  // Makes the edges of [begin, end) edges of pieces; the first piece at or after begin.
  Pieces::iterator cut(Pieces& pieces, uint64_t begin, uint64_t end);
  Pieces& pieces_of(uint64_t file);

  std::unordered_map<uint64_t, Pieces> files_;
  size_t pieces_ = 0;
};

}  // namespace emu::watch
