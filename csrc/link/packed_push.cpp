#include "link/packed_push.h"

#include <algorithm>
#include <cstring>

#include "acl/acl_rt.h"
#include "acl/kernels.h"
#include "error.h"
#include "link/engine.h"
#include "link/instance.h"
#include "plan/choice.h"

namespace datadist {
namespace {

const ProductCosts& costs() {
  static const ProductCosts& found = []() -> const ProductCosts& {
    const char* const name = aclrtGetSocName();
    return costs_of(name != nullptr ? name : "");
  }();
  return found;
}

// "", or why it cannot go packed.
std::string why_not(Link& link, const TransferRequest& request, const TransferPlan& plan) {
  if (request.layout != Layout::kBlocks) return "only blocks of blocks caches travel packed";
  if (plan.local->tensors.front().reach != Reach::kDevice || plan.needs.has_host_end)
    return "host memory takes part";
  if (const std::string& missing = acl::RowKernel::why_missing(); !missing.empty()) return missing;
  if (plan.remote->id >= OfferWord::kMostCaches ||
      static_cast<int64_t>(request.src_length) >= OfferWord::kMostBlocks ||
      plan.local_layers.tensors_per_layer >= OfferWord::kMostTensors)
    return join("cache ", plan.remote->id, ", ", request.src_length, " blocks, ",
                plan.local_layers.tensors_per_layer, " tensors in a layer do not fit an offer (",
                OfferWord::kMostCaches, ", ", OfferWord::kMostBlocks, ", ", OfferWord::kMostTensors, ")");
  for (size_t i = 0; i < request.src_length; ++i) {
    if (request.src_blocks[i] < 0) return "the lists of blocks are padded";
  }
  const size_t chunk = link.staging().peer_chunk_bytes();
  const auto& strides = plan.local->geometry.strides;
  const int64_t largest = *std::max_element(strides.begin(), strides.end());
  if (chunk > 0 && static_cast<size_t>(largest) > chunk)
    return join("a block of ", largest, " bytes does not fit into a chunk of ", chunk,
                " bytes; raise packed_staging_bytes at ", link.peer().name);
  return "";
}

}  // namespace

void plan_packing(Link& link, const TransferRequest& request, std::optional<bool> wanted,
                  TransferPlan* plan) {
  if (link.peer().is_fenced && !wanted) wanted = true;
  require(!link.peer().is_fenced || *wanted, kParamInvalid, request.asked,
          ": packed is False, and the link to ", link.peer().name,
          " is fenced, so it takes packed transfers only. Nothing was sent.");
  if (wanted == false) return;
  const std::string why = why_not(link, request, *plan);
  require(why.empty() || !wanted, kFeatureNotEnabled, request.asked,
          ": this push cannot travel packed (207000): ", why,
          ". Nothing was sent; the link is still usable.");
  if (!why.empty()) return;
  if (!wanted) {
    const auto per_layer = plan->local_layers.tensors_per_layer;
    const auto first = plan->local->geometry.strides.begin() + plan->local_layers.first_layer * per_layer;
    const size_t known = link.staging().peer_chunk_bytes();
    const size_t chunk = known > 0 ? known : chunk_bytes_of(link.options().packed_staging_bytes);
    if (!choose(costs(), {first, first + per_layer}, plan->runs, plan->local_layers.layers, chunk).packs())
      return;
  }
  plan->way = wanted ? TransferPlan::Way::kPacked : TransferPlan::Way::kOffered;
  plan->packed_src.assign(request.src_blocks, request.src_blocks + request.src_length);
}

void PackedProgram::prepare() {
  Link& link = *transfer_->link_;
  const TransferPlan& plan = transfer_->plan_;
  window_ = link.staging().prepare_window(transfer_->window_, link.transport());
  const auto& strides = plan.local->geometry.strides;
  const int64_t largest = *std::max_element(strides.begin(), strides.end());
  require(static_cast<size_t>(largest) <= window_.chunk_bytes, kParamInvalid, "a block of ", largest,
          " bytes does not fit into a chunk of ", window_.chunk_bytes,
          " bytes; raise packed_staging_bytes at the receiver");
  transfer_->ids_ = link.staging().take_ids(plan.packed_src.size());
  ids_ = transfer_->ids_.get();
  std::copy(plan.packed_src.begin(), plan.packed_src.end(), ids_->ids());
  begin_layer();
}

void PackedProgram::begin_layer() {
  const TransferPlan& plan = transfer_->plan_;
  const int64_t per_layer = plan.local_layers.tensors_per_layer;
  packing_ =
      Packing(plan.local->geometry.strides.data() + (plan.local_layers.first_layer + layer_) * per_layer,
              per_layer, static_cast<int64_t>(plan.packed_src.size()), window_.chunk_bytes);
}

char* PackedProgram::own_chunk() const {
  return window_.own + chunk_ % kChunksPerWindow * window_.chunk_bytes;
}

bool PackedProgram::next(Step* step) {
  const TransferPlan& plan = transfer_->plan_;
  Link& link = *transfer_->link_;
  const auto [slot, epoch] = *transfer_->slot_;
  switch (at_) {
    case At::kIds:
      at_ = At::kStart;
      *step = {Step::kToDevice, ids_->device.address, ids_->ids(), plan.packed_src.size() * sizeof(int64_t)};
      return true;
    case At::kStart:
      at_ = At::kRange;
      *step = {Step::kWait, transfer_->start_[static_cast<size_t>(layer_)].address, nullptr, 1};
      return true;
    case At::kRange:
      at_ = At::kCredit;
      if (transfer_->spans_.empty()) return next(step);
      *step = {Step::kRangeStart, nullptr, transfer_->spans_[static_cast<size_t>(layer_)].c_str(), 0};
      return true;
    case At::kCredit:
      at_ = At::kGather;
      *step = {Step::kWait, link.own_credit(slot), nullptr, chunk_count(epoch, chunk_ + 1)};
      return true;
    case At::kGather: {
      PackedPiece piece;
      if (packing_.next(&piece)) {
        const int64_t tensor =
            (plan.local_layers.first_layer + layer_) * plan.local_layers.tensors_per_layer + piece.tensor;
        *step = {Step::kGather, own_chunk() + piece.offset, plan.local->tensors[tensor].address,
                 static_cast<uint64_t>(plan.local->geometry.strides[tensor])};
        step->height = static_cast<size_t>(piece.blocks);
        step->ids = ids_->on_device() + piece.first;
        step->rows = plan.local->geometry.num_blocks;
        return true;
      }
      at_ = At::kFlag;
      *step = {Step::kCopy, window_.peer + chunk_ % kChunksPerWindow * window_.chunk_bytes, own_chunk(),
               packing_.filled()};
      return true;
    }
    case At::kFlag:
      ++chunk_;
      packing_.next_chunk();
      at_ = packing_.is_at_end() ? At::kRangeEnd : At::kCredit;
      *step = {Step::kRemoteWrite, link.peer_arrived(slot), nullptr, chunk_count(epoch, chunk_)};
      return true;
    case At::kRangeEnd:
      at_ = At::kLayerEnd;
      if (transfer_->spans_.empty()) return next(step);
      *step = {Step::kRangeEnd, nullptr, nullptr, 0};
      return true;
    case At::kLayerEnd:
      ++layer_;
      at_ = layer_ == plan.local_layers.layers ? At::kDone : At::kStart;
      if (at_ == At::kStart) begin_layer();
      return next(step);
    case At::kDone:
      at_ = At::kEnd;
      *step = {Step::kWrite, transfer_->done_.address, nullptr, 1};
      return true;
    case At::kEnd:
      break;
  }
  return false;
}

void PackedProgram::ended(uint64_t mark, int64_t code, const std::string& what) {
  transfer_->submission_ended(mark, code, what);
}

}  // namespace datadist
