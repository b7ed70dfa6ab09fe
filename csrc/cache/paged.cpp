#include "cache/paged.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/clamp_min.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/index_select.h>

#include "error.h"
#include "messages/messages.h"

namespace datadist {
namespace {

void require_ids(const char* asked, const char* name, const at::Tensor& ids, const at::Tensor& tensor) {
  if (!(ids.scalar_type() == at::kLong && ids.device() == tensor.device()))
    refuse(Message::bad_value,
           {{"name", join(asked, ": ", name)},
            {"value", join(ids.scalar_type(), " on ", ids.device().str())},
            {"expected", join("int64 on ", tensor.device().str(), ", where the cache is")}});
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
  if (tensor.dim() < 2)
    refuse(Message::bad_value, {{"name", join(asked, ": the shape of the cache's tensors")},
                                {"value", c10::str(tensor.sizes())},
                                {"expected", "[num_blocks, block_size, ...]"}});
  if (!(rows.dim() >= 1 && rows.sizes().slice(1) == tensor.sizes().slice(2)))
    refuse(Message::bad_value, {{"name", join(asked, ": the shape of ", name)},
                                {"value", c10::str(rows.sizes())},
                                {"expected", join("[tokens, ...] with rows of ",
                                                  c10::str(tensor.sizes().slice(2)), ", as the cache has")}});
  if (!(rows.scalar_type() == tensor.scalar_type() && rows.device() == tensor.device()))
    refuse(Message::bad_value,
           {{"name", join(asked, ": ", name)},
            {"value", join(rows.scalar_type(), " on ", rows.device().str())},
            {"expected", join(tensor.scalar_type(), " on ", tensor.device().str(), ", as the cache")}});
}

PagedCache::LayerTensors PagedCache::layer_of(const char* asked, const at::Tensor& status, int64_t layer,
                                              const at::Tensor& keys,
                                              const std::optional<at::Tensor>& values) const {
  const int64_t each = values.has_value() ? 2 : 1;
  const auto tensors = static_cast<int64_t>(tensors_.size());
  if (!(tensors % each == 0 && layer >= 0 && layer < tensors / each))
    refuse(Message::layer_outside_cache,
           {{"asked", asked}, {"value", layer}, {"each", each}, {"count", tensors}});
  const at::Tensor& first = tensors_[layer * each];
  if (!(status.scalar_type() == at::kInt && status.numel() == 1 && status.device() == first.device()))
    refuse(Message::bad_value,
           {{"name", join(asked, ": status")},
            {"value",
             join(status.scalar_type(), " with ", status.numel(), " elements on ", status.device().str())},
            {"expected", join("int32[1] on ", first.device().str(), ", where the cache is")}});
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
  if (!(slots.dim() == 1 && slots.size(0) == keys.size(0) &&
        (found.values == nullptr || slots.size(0) == values->size(0))))
    refuse(Message::bad_value,
           {{"name", join(asked, ": the shape of slots")},
            {"value", join(c10::str(slots.sizes()), ", and of keys ", c10::str(keys.sizes()))},
            {"expected", "one slot for each token"}});
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
  if (!(block_table.dim() == 1 || block_table.dim() == 2))
    refuse(Message::bad_value, {{"name", join(asked, ": block_table")},
                                {"value", join("of ", block_table.dim(), " dimensions")},
                                {"expected", "[blocks] or [batch, blocks]"}});
  if (!(found.keys->size(1) == block_size && (!found.values || found.values->size(1) == block_size)))
    refuse(Message::bad_value,
           {{"name", join(asked, ": block_size")},
            {"value", block_size},
            {"expected", join(found.keys->size(1), ", the tokens of the cache's blocks")}});
  const at::Tensor blocks = block_table.flatten().clamp_min(0);
  return {gather(*found.keys, blocks, block_table),
          found.values ? gather(*found.values, blocks, block_table) : at::empty({0}, keys.options())};
}

HandleTable<PagedCache>& paged_caches() {
  static auto* table = new HandleTable<PagedCache>("paged cache");
  return *table;
}

}  // namespace datadist
