// Blocks caches as a graph sees them in the hidden style: not at all. The graph holds a number, and an op
// finds the tensors behind it when it runs, so a compiler has nothing to copy.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>
#include <vector>

#include "link/handles.h"

namespace datadist {

// The tensors of one registered blocks cache, each [num_blocks, block_size, *row]: dimension 1 counts the
// tokens of a block. What they hold of one layer: `tensors_per_layer` of them, next to one another.
class PagedCache {
 public:
  explicit PagedCache(std::vector<at::Tensor> tensors) : tensors_(std::move(tensors)) {}

  // cache[t].flatten(0, 1)[slots] = rows, on the current stream. `values` is absent where a layer has one
  // tensor (MLA).
  void store(const char* asked, const at::Tensor& status, int64_t layer, const at::Tensor& keys,
             const std::optional<at::Tensor>& values, const at::Tensor& slots) const;

  // cache[t][block_table], flattened to [..., blocks * block_size, *row]; padding (-1) reads block 0.
  std::tuple<at::Tensor, at::Tensor> read(const char* asked, const at::Tensor& status, int64_t layer,
                                          const at::Tensor& keys, const std::optional<at::Tensor>& values,
                                          const at::Tensor& block_table, int64_t block_size) const;

 private:
  struct LayerTensors {
    const at::Tensor* keys;
    const at::Tensor* values;
  };
  LayerTensors layer_of(const char* asked, const at::Tensor& status, int64_t layer, const at::Tensor& keys,
                        const std::optional<at::Tensor>& values) const;
  void check_rows(const char* asked, const char* name, const at::Tensor& rows,
                  const at::Tensor& tensor) const;

  const std::vector<at::Tensor> tensors_;
};

HandleTable<PagedCache>& paged_caches();

}  // namespace datadist
