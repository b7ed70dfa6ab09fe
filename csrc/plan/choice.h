// Direct or packed: which of the two takes less. Pure arithmetic.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "plan/copies.h"
#include "plan/cost.h"
#include "plan/plan.h"

namespace datadist {

struct Choice {
  TransferSize size;
  double direct_us = 0;
  double packed_us = 0;
  bool fits = false;  // a block fits into a chunk
  bool packs() const { return fits && packed_us < direct_us; }
};

// `layer`: the tensors of one; all layers alike. `runs`: their blocks, merged.
Choice choose(const ProductCosts& costs, const std::vector<TensorPair>& layer, std::span<const Run> runs,
              int64_t layers, size_t chunk_bytes);

}  // namespace datadist
