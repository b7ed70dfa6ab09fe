#include "plan/choice.h"

#include <algorithm>

#include "plan/packing.h"

namespace datadist {
namespace {

int64_t copies_of(std::vector<TensorPair> tensors, std::span<const Run> runs) {
  Copies copies;
  copies.begin(tensors.data(), tensors.size(), runs.data(), runs.size(), {});
  int64_t count = 0;
  for (Rows rows; copies.next(&rows);) ++count;
  return count;
}

}  // namespace

Choice choose(const ProductCosts& costs, const std::vector<TensorPair>& layer, std::span<const Run> runs,
              int64_t layers, size_t chunk_bytes) {
  int64_t blocks = 0;
  for (const Run& run : runs) blocks += run.blocks;
  int64_t block_bytes = 0;
  std::vector<int64_t> strides;
  for (const TensorPair& tensor : layer) {
    strides.push_back(tensor.local_stride);
    block_bytes += tensor.local_stride;
  }
  Choice choice;
  choice.fits = !strides.empty() &&
                static_cast<size_t>(*std::max_element(strides.begin(), strides.end())) <= chunk_bytes;
  choice.size.bytes = layers * blocks * block_bytes;
  choice.size.layers = layers;
  choice.size.copies = layers * copies_of(layer, runs);
  choice.direct_us = direct_us(costs, choice.size);
  if (!choice.fits) return choice;
  const PackedSize packed =
      packed_size(strides.data(), static_cast<int64_t>(strides.size()), blocks, chunk_bytes);
  choice.size.chunks = layers * packed.chunks;
  choice.size.pieces = layers * packed.pieces;
  choice.packed_us = packed_us(costs, choice.size);
  return choice;
}

}  // namespace datadist
