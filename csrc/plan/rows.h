// Pieces -> copies as a device makes them: `height` rows of `width` bytes, at a constant distance on either
// side. Pure arithmetic.
#pragma once

#include <cstddef>
#include <cstdint>

namespace datadist {

struct Rows {
  char* dst = nullptr;
  char* src = nullptr;
  size_t width = 0;
  size_t height = 1;
  size_t dst_pitch = 0;  // of one row: 0
  size_t src_pitch = 0;

  size_t bytes() const { return width * height; }
  Rows row(size_t index) const { return {dst + index * dst_pitch, src + index * src_pitch, width}; }
};

// A run of bytes, and the pieces of memory that its ends lie in: only pieces of the same two may share a
// copy.
struct Piece {
  char* dst;
  char* src;
  size_t bytes;
  uintptr_t dst_slab;
  uintptr_t src_slab;
};

// Merges pieces that come in order: neighbours to one run, runs of equal length at a constant distance to one
// copy. Taking all that fits makes the fewest copies, since a part of such a sequence is one, too.
class RowMerger {
 public:
  // The limits of aclrtMemcpy2dAsync.
  static constexpr size_t kMaxWidth = 5'000'000;
  static constexpr size_t kMaxHeight = 5'242'880;

  // True when `done` is a copy that the new piece ended.
  bool add(const Piece& piece, Rows* done) {
    if (run_.bytes > 0 && same_slabs(run_, piece) && piece.src == run_.src + run_.bytes &&
        piece.dst == run_.dst + run_.bytes) {
      run_.bytes += piece.bytes;
      return false;
    }
    const Piece run = run_;
    run_ = piece;
    return run.bytes > 0 && close_run(run, done);
  }

  // What is left, one at a time; false when that is nothing.
  bool flush(Rows* done) {
    if (run_.bytes > 0) {
      const Piece run = run_;
      run_.bytes = 0;
      if (close_run(run, done)) return true;
    }
    if (rows_.width == 0) return false;
    *done = rows_;
    rows_.width = 0;
    return true;
  }

 private:
  static bool same_slabs(const Piece& a, const Piece& b) {
    return a.dst_slab == b.dst_slab && a.src_slab == b.src_slab;
  }

  bool takes(const Piece& run) const {
    if (rows_.width != run.bytes || run.bytes > kMaxWidth || rows_.height == kMaxHeight) return false;
    if (!same_slabs(first_, run)) return false;
    const char* const last_src = rows_.src + (rows_.height - 1) * rows_.src_pitch;
    const char* const last_dst = rows_.dst + (rows_.height - 1) * rows_.dst_pitch;
    if (run.src < last_src + run.bytes || run.dst < last_dst + run.bytes) return false;
    return rows_.height == 1 ||
           (run.src == last_src + rows_.src_pitch && run.dst == last_dst + rows_.dst_pitch);
  }

  bool close_run(const Piece& run, Rows* done) {
    if (takes(run)) {
      if (rows_.height == 1) {
        rows_.src_pitch = static_cast<size_t>(run.src - rows_.src);
        rows_.dst_pitch = static_cast<size_t>(run.dst - rows_.dst);
      }
      ++rows_.height;
      return false;
    }
    *done = rows_;
    const bool is_done = rows_.width > 0;
    first_ = run;
    rows_ = {run.dst, run.src, run.bytes};
    return is_done;
  }

  Piece run_{};    // grows
  Piece first_{};  // of rows_
  Rows rows_{};
};

}  // namespace datadist
