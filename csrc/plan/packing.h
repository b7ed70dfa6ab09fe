// How the blocks of one layer lie in staging when they travel packed: piece behind piece, in chunks that
// staging has room for. Both ends work it out for themselves from the same numbers. Pure arithmetic.
#pragma once

#include <cstddef>
#include <cstdint>

namespace datadist {

// Staging of one link and direction: windows, each serving one ticket at a time, of chunks that are filled,
// sent and scattered in turn. Part of the wire protocol.
constexpr size_t kStagingWindows = 16;
constexpr size_t kChunksPerWindow = 2;
constexpr size_t kPackedAlignment = 64;  // of a piece in its chunk: the runtime's manuals ask for no more

inline size_t chunk_bytes_of(size_t staging_bytes) {
  return staging_bytes / (kStagingWindows * kChunksPerWindow) / kPackedAlignment * kPackedAlignment;
}

// Some blocks of one tensor, next to one another in a chunk.
struct PackedPiece {
  int64_t tensor = 0;  // of the layer
  int64_t first = 0;   // index into the list of blocks
  int64_t blocks = 0;
  size_t offset = 0;  // in the chunk
};

// The pieces of a layer, one at a time.
class Packing {
 public:
  Packing() = default;
  // `strides`: bytes of a block in each of the layer's tensors. Every block fits into a chunk.
  Packing(const int64_t* strides, int64_t tensors, int64_t blocks, size_t chunk_bytes)
      : strides_(strides), tensors_(tensors), blocks_(blocks), chunk_bytes_(chunk_bytes) {}

  // False at the end of the layer, or of the chunk: `next_chunk` goes on behind that, if there is more.
  bool next(PackedPiece* piece) {
    if (is_at_end()) return false;
    const auto stride = static_cast<size_t>(strides_[tensor_]);
    const size_t room = (chunk_bytes_ - used_) / stride;
    if (room == 0) return false;
    const int64_t left = blocks_ - block_;
    const int64_t taken = room < static_cast<size_t>(left) ? static_cast<int64_t>(room) : left;
    *piece = {tensor_, block_, taken, used_};
    const size_t end = used_ + static_cast<size_t>(taken) * stride;
    filled_ = end;
    used_ = (end + kPackedAlignment - 1) / kPackedAlignment * kPackedAlignment;
    if (used_ > chunk_bytes_) used_ = chunk_bytes_;
    block_ += taken;
    if (block_ == blocks_) {
      block_ = 0;
      ++tensor_;
    }
    return true;
  }

  // Bytes of the chunk that its pieces span.
  size_t filled() const { return filled_; }
  void next_chunk() { used_ = filled_ = 0; }
  bool is_at_end() const { return tensor_ == tensors_; }

 private:
  const int64_t* strides_ = nullptr;
  int64_t tensors_ = 0;
  int64_t blocks_ = 0;
  size_t chunk_bytes_ = 0;
  int64_t tensor_ = 0;
  int64_t block_ = 0;
  size_t used_ = 0;
  size_t filled_ = 0;
};

struct PackedSize {
  int64_t chunks = 0;
  int64_t pieces = 0;
};

inline PackedSize packed_size(const int64_t* strides, int64_t tensors, int64_t blocks, size_t chunk_bytes) {
  PackedSize size;
  PackedPiece piece;
  for (Packing packing(strides, tensors, blocks, chunk_bytes); !packing.is_at_end(); packing.next_chunk()) {
    while (packing.next(&piece)) ++size.pieces;
    ++size.chunks;
  }
  return size;
}

}  // namespace datadist
