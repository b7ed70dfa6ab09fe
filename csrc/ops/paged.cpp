// Store and read of a cache that graphs do not see: in place on whatever device it lies on, without a link.
#include "cache/paged.h"

#include <torch/library.h>

#include "error.h"
#include "ops/span.h"
#include "python_error.h"

namespace datadist {
namespace {

void store_layer(const at::Tensor& status, const at::Tensor& keys, const std::optional<at::Tensor>& values,
                 const at::Tensor& slots, int64_t layer, int64_t cache) {
  as_python_error([&] {
    const OpSpan span([&] {
      return join("store_layer layer=", layer, " tokens=", slots.numel(),
                  " bytes=", keys.nbytes() + (values ? values->nbytes() : 0));
    });
    paged_caches().get(cache, "store_layer")->store("store_layer", status, layer, keys, values, slots);
  });
}

std::tuple<at::Tensor, at::Tensor> read_layer(const at::Tensor& status, const at::Tensor& keys,
                                              const std::optional<at::Tensor>& values,
                                              const at::Tensor& block_table, int64_t block_size,
                                              int64_t layer, int64_t cache) {
  std::tuple<at::Tensor, at::Tensor> found;
  as_python_error([&] {
    const OpSpan span([&] { return join("read_layer layer=", layer, " blocks=", block_table.numel()); });
    found = paged_caches()
                .get(cache, "read_layer")
                ->read("read_layer", status, layer, keys, values, block_table, block_size);
  });
  return found;
}

}  // namespace

TORCH_LIBRARY_IMPL(torch_llm_datadist, CompositeExplicitAutograd, m) {
  m.impl("store_layer", &store_layer);
  m.impl("read_layer", &read_layer);
}

}  // namespace datadist
