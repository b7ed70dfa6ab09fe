#include "cache/paged.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/clamp_min.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/index_select.h>

#include "error.h"

namespace datadist {
namespace {

void require_ids(const char* asked, const char* name, const at::Tensor& ids, const at::Tensor& tensor) {
  require(ids.scalar_type() == at::kLong && ids.device() == tensor.device(), kParamInvalid, asked, ": ", name,
          " is ", ids.scalar_type(), " on ", ids.device().str(), "; int64 on ", tensor.device().str(),
          ", where the cache is, was expected");
}

at::Tensor gather(const at::Tensor& tensor, const at::Tensor& blocks, const at::Tensor& block_table) {
  std::vector<int64_t> shape = block_table.sizes().vec();
  shape.back() *= tensor.size(1);
  for (int64_t i = 2; i < tensor.dim(); ++i) shape.push_back(tensor.size(i));
  return tensor.index_select(0, blocks).view(shape);
}

}  // namespace

void PagedCache::check_rows(const char* asked, const char* name, const at::Tensor& rows,
                            const at::Tensor& tensor) const {
  require(tensor.dim() >= 2, kParamInvalid, asked, ": the cache was registered with tensors of shape ",
          c10::str(tensor.sizes()), "; [num_blocks, block_size, ...] was expected");
  require(rows.dim() >= 1 && rows.sizes().slice(1) == tensor.sizes().slice(2), kParamInvalid, asked, ": ",
          name, " has shape ", c10::str(rows.sizes()), "; [tokens, ...] with rows of ",
          c10::str(tensor.sizes().slice(2)), ", as the cache has, was expected");
  require(rows.scalar_type() == tensor.scalar_type() && rows.device() == tensor.device(), kParamInvalid,
          asked, ": ", name, " is ", rows.scalar_type(), " on ", rows.device().str(), "; the cache is ",
          tensor.scalar_type(), " on ", tensor.device().str());
}

PagedCache::LayerTensors PagedCache::layer_of(const char* asked, const at::Tensor& status, int64_t layer,
                                              const at::Tensor& keys,
                                              const std::optional<at::Tensor>& values) const {
  const int64_t each = values.has_value() ? 2 : 1;
  const auto tensors = static_cast<int64_t>(tensors_.size());
  require(tensors % each == 0 && layer >= 0 && layer < tensors / each, kParamInvalid, asked, ": layer ",
          layer, " of ", each, " tensors each; the cache has ", tensors, " tensors");
  const at::Tensor& first = tensors_[layer * each];
  require(status.scalar_type() == at::kInt && status.numel() == 1 && status.device() == first.device(),
          kParamInvalid, asked, ": status is ", status.scalar_type(), " with ", status.numel(),
          " elements on ", status.device().str(), "; int32[1] on ", first.device().str(),
          ", where the cache is, was expected");
  check_rows(asked, "keys", keys, first);
  if (each == 1) return {&first, nullptr};
  const at::Tensor& second = tensors_[layer * each + 1];
  check_rows(asked, "values", *values, second);
  return {&first, &second};
}

void PagedCache::store(const char* asked, const at::Tensor& status, int64_t layer, const at::Tensor& keys,
                       const std::optional<at::Tensor>& values, const at::Tensor& slots) const {
  // The cache is no part of anybody's gradient, even where a model runs without no_grad.
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  const LayerTensors found = layer_of(asked, status, layer, keys, values);
  require_ids(asked, "slots", slots, *found.keys);
  require(slots.dim() == 1 && slots.size(0) == keys.size(0) &&
              (found.values == nullptr || slots.size(0) == values->size(0)),
          kParamInvalid, asked, ": slots has shape ", c10::str(slots.sizes()), ", keys ",
          c10::str(keys.sizes()), "; one slot for each token was expected");
  if (slots.numel() == 0) return;
  found.keys->flatten(0, 1).index_copy_(0, slots, keys);
  if (found.values != nullptr) found.values->flatten(0, 1).index_copy_(0, slots, *values);
}

std::tuple<at::Tensor, at::Tensor> PagedCache::read(const char* asked, const at::Tensor& status,
                                                    int64_t layer, const at::Tensor& keys,
                                                    const std::optional<at::Tensor>& values,
                                                    const at::Tensor& block_table, int64_t block_size) const {
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  const LayerTensors found = layer_of(asked, status, layer, keys, values);
  require_ids(asked, "block_table", block_table, *found.keys);
  require(block_table.dim() == 1 || block_table.dim() == 2, kParamInvalid, asked, ": block_table has ",
          block_table.dim(), " dimensions; [blocks] or [batch, blocks] was expected");
  require(found.keys->size(1) == block_size && (!found.values || found.values->size(1) == block_size),
          kParamInvalid, asked, ": block_size = ", block_size, ", the cache's blocks hold ",
          found.keys->size(1), " tokens");
  const at::Tensor blocks = block_table.flatten().clamp_min(0);
  return {gather(*found.keys, blocks, block_table),
          found.values ? gather(*found.values, blocks, block_table) : at::empty({0}, keys.options())};
}

HandleTable<PagedCache>& paged_caches() {
  static auto* table = new HandleTable<PagedCache>("paged cache");
  return *table;
}

}  // namespace datadist
