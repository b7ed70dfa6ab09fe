#include "link/packed_push.h"

#include <algorithm>
#include <cstring>

#include "acl/acl_rt.h"
#include "acl/kernels.h"
#include "error.h"
#include "link/engine.h"
#include "link/instance.h"
#include "messages/messages.h"
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
  if (plan.local->tensors.front().reach != Reach::kDevice || plan.needs.has_host_end ||
      plan.remote->exports.front().kind != MemoryKind::kDevice)
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

// The peer's memory may not be mapped yet. Within a slab its tensors are as far apart at the peer's
// addresses, and more of where they lie no copy depends on.
std::vector<TensorPair> first_layer(const TransferPlan& plan) {
  const int64_t per_layer = plan.local_layers.tensors_per_layer;
  std::vector<TensorPair> tensors;
  tensors.reserve(static_cast<size_t>(per_layer));
  for (int64_t i = 0; i < per_layer; ++i) {
    const int64_t l = plan.local_layers.first_layer * per_layer + i;
    const int64_t r = plan.remote_layers.first_layer * per_layer + i;
    const int64_t stride = plan.local->geometry.strides[l];
    tensors.push_back({reinterpret_cast<char*>(plan.remote->exports[r].address),
                       plan.local->tensors[l].address, stride, stride, stride, plan.remote->slabs[r],
                       plan.local->slabs[l]});
  }
  return tensors;
}

}  // namespace

void plan_packing(Link& link, const TransferRequest& request, std::optional<bool> wanted,
                  TransferPlan* plan) {
  if (link.peer().is_fenced && !wanted) wanted = true;
  if (link.peer().is_fenced && !*wanted) {
    refuse(Message::fenced_takes_packed_only,
           {{"asked", request.asked}, {"value", "False"}, {"peer", link.peer().name}});
  }
  if (wanted == false) return;
  const std::string why = why_not(link, request, *plan);
  if (!why.empty() && wanted)
    refuse(Message::cannot_travel_packed, {{"asked", request.asked}, {"value", why}});
  if (!why.empty()) return;
  if (!wanted) {
    const size_t known = link.staging().peer_chunk_bytes();
    const size_t chunk = known > 0 ? known : chunk_bytes_of(link.options().packed_staging_bytes);
    if (!choose(costs(), first_layer(*plan), plan->runs, plan->local_layers.layers, chunk).packs()) return;
  }
  plan->way = wanted ? TransferPlan::Way::kPacked : TransferPlan::Way::kOffered;
  if (plan->needs.comparison && !plan->is_proven)
    plan->needs.device_buffer = true;  // the peer's staging is read back over it
  plan->packed_src.assign(request.src_blocks, request.src_blocks + request.src_length);
}

PackedProgram::PackedProgram(std::shared_ptr<Transfer> transfer)
    : transfer_(std::move(transfer)),
      verification_(transfer_->staging_, transfer_->host_copies_.get()),
      adding_(transfer_->staging_, transfer_->host_copies_.get()) {}

void PackedProgram::prepare() {
  Link& link = *transfer_->link_;
  const TransferPlan& plan = transfer_->plan_;
  if (plan.needs.buffers())
    transfer_->staging_->prepare(plan.needs, link.engine().device(), *link.options().staging);
  window_ = link.staging().prepare_window(transfer_->window_, link.transport());
  const auto& strides = plan.local->geometry.strides;
  const int64_t largest = *std::max_element(strides.begin(), strides.end());
  require(static_cast<size_t>(largest) <= window_.chunk_bytes, kParamInvalid, "a block of ", largest,
          " bytes does not fit into a chunk of ", window_.chunk_bytes,
          " bytes; raise packed_staging_bytes at the receiver");
  transfer_->ids_ = link.staging().take_ids(plan.packed_src.size() + (plan.is_proven ? 1 : 0));
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
  compared_ = packing_;
}

char* PackedProgram::chunk_in(char* window) const {
  return window + chunk_ % kChunksPerWindow * window_.chunk_bytes;
}

int64_t PackedProgram::tensor_of(const PackedPiece& piece) const {
  const LayerRange& layers = transfer_->plan_.local_layers;
  return (layers.first_layer + layer_) * layers.tensors_per_layer + piece.tensor;
}

// The blocks of the chunk, one by one, with what lies in the receiver's staging.
bool PackedProgram::next_comparison(Step* step) {
  if (verification_.next(step)) return true;
  if (left_.blocks == 0 && !compared_.next(&left_)) return false;
  const TransferPlan& plan = transfer_->plan_;
  const int64_t tensor = tensor_of(left_);
  const int64_t stride = plan.local->geometry.strides[tensor];
  const int64_t block = plan.packed_src[left_.first];
  Place src = plan.local->tensors[tensor];
  src.address += block * stride;
  const Place dst{chunk_in(window_.peer) + left_.offset, Reach::kImported};
  Compared what;
  what.tensor = tensor;
  what.src = block;
  what.dst_is_staging = true;
  what.dst = left_.first;
  what.block_bytes = static_cast<size_t>(stride);
  verification_.begin(src, dst, what.block_bytes, what);
  ++left_.first;
  --left_.blocks;
  left_.offset += what.block_bytes;
  return verification_.next(step);
}

// The blocks of the layer, one by one: as they are scattered.
bool PackedProgram::next_addition(Step* step) {
  if (adding_.next(step)) return true;
  const TransferPlan& plan = transfer_->plan_;
  if (added_.tensor == plan.local_layers.tensors_per_layer) return false;
  const int64_t tensor = tensor_of(added_);
  const int64_t stride = plan.local->geometry.strides[tensor];
  Place from = plan.local->tensors[tensor];
  from.address += plan.packed_src[added_.first] * stride;
  adding_.begin(from, static_cast<size_t>(stride));
  if (++added_.first == static_cast<int64_t>(plan.packed_src.size())) {
    added_.first = 0;
    ++added_.tensor;
  }
  return adding_.next(step);
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
        const int64_t tensor = tensor_of(piece);
        *step = {Step::kGather, chunk_in(window_.own) + piece.offset, plan.local->tensors[tensor].address,
                 static_cast<uint64_t>(plan.local->geometry.strides[tensor])};
        step->height = static_cast<size_t>(piece.blocks);
        step->ids = ids_->on_device() + piece.first;
        step->rows = plan.local->geometry.num_blocks;
        return true;
      }
      at_ = plan.needs.comparison ? At::kVerify : At::kFlag;
      if (plan.is_proven) at_ = packing_.is_at_end() ? At::kAdd : At::kFlag;
      *step = {Step::kCopy, chunk_in(window_.peer), chunk_in(window_.own), packing_.filled()};
      return true;
    }
    case At::kVerify:
      if (next_comparison(step)) return true;
      compared_.next_chunk();
      at_ = At::kMark;
      return next(step);
    case At::kAdd:
      if (next_addition(step)) return true;
      added_ = {};
      at_ = At::kSum;
      *step = transfer_->host_copies_->tell_sum(sum());
      return true;
    case At::kSum:
      at_ = At::kSendSum;
      *step = {Step::kToDevice, sum_on_device(), sum(), sizeof(uint64_t)};
      return true;
    case At::kSendSum:
      at_ = At::kFlag;
      *step = {Step::kCopy, link.proofs().peer(slot) + static_cast<size_t>(layer_) * sizeof(uint64_t),
               sum_on_device(), sizeof(uint64_t)};
      return true;
    case At::kMark:
      at_ = At::kConfirmed;
      *step = transfer_->host_copies_->mark();
      return true;
    case At::kConfirmed:
      at_ = At::kFlag;
      *step = {Step::kWait, transfer_->confirmed_.address, nullptr, chunk_ + 1};
      return true;
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
      at_ = layer_ == plan.local_layers.layers ? At::kSettle : At::kStart;
      if (at_ == At::kStart) begin_layer();
      return next(step);
    case At::kSettle:
      at_ = plan.is_proven ? At::kFound : At::kDone;
      *step = {Step::kSettle, nullptr, nullptr, 0};
      return true;
    case At::kFound:
      at_ = At::kDone;
      *step = {Step::kWait, link.own_credit(slot), nullptr, chunk_count(epoch, kAllIsFound)};
      return true;
    case At::kDone:
      at_ = At::kEnd;
      *step = {Step::kWrite, transfer_->done_.address, nullptr, 1};
      // The watchdog opens that gate, as of any transfer with host functions.
      if (transfer_->host_copies_ != nullptr) *step = transfer_->host_copies_->last_mark();
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
