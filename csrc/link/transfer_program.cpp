#include "link/transfer_program.h"

#include "error.h"
#include "link/engine.h"
#include "link/kept.h"
#include "link/proof.h"
#include "link/ticket.h"
#include "link/transfer.h"
#include "link/verification.h"
#include "plan/copies.h"

namespace datadist {

// The steps of one transfer, made one at a time so that 100 000 blocks need no list of their copies.
class TransferProgram : public Program {
 public:
  TransferProgram(std::shared_ptr<Transfer> transfer, bool notify_host)
      : transfer_(std::move(transfer)),
        plan_(transfer_->plan_),
        notify_host_(notify_host),
        route_(transfer_->staging_, transfer_->host_copies_.get()),
        verification_(transfer_->staging_, transfer_->host_copies_.get()),
        adding_(transfer_->staging_, transfer_->host_copies_.get()) {
    if (plan_.is_proven) at_ = At::kList;
  }

  static void* operator new(size_t) { return Kept<TransferProgram>().allocate(1); }
  static void operator delete(void* memory) {
    Kept<TransferProgram>().deallocate(static_cast<TransferProgram*>(memory), 1);
  }

  void prepare() override {
    if (plan_.remote == nullptr) return;
    Link& link = *transfer_->link_;
    if (plan_.needs.buffers())
      transfer_->staging_->prepare(plan_.needs, link.engine().device(), *link.options().staging);
    use_local_memory();
    if (plan_.is_proven) write_list();
    RemoteCache& remote = *plan_.remote;
    const LayerRange& range = plan_.remote_layers;
    const int64_t first = range.first_layer * range.tensors_per_layer;
    for (int64_t t = first; t < first + range.layers * range.tensors_per_layer; ++t) {
      if (remote.tensors[t].address != nullptr) continue;
      const auto bytes = static_cast<size_t>(remote.geometry.num_blocks * remote.geometry.strides[t]);
      try {
        remote.tensors[t] = transfer_->link_->transport().map(remote.exports[t], bytes);
      } catch (...) {
        transfer_->peers_memory_is_refused_ = true;
        throw;
      }
    }
    if (!plan_.needs.has_host_end) pair_tensors();
  }

  bool next(Step* step) override {
    switch (at_) {
      case At::kList:
        at_ = At::kSendList;
        *step = proof_to_device(kListAt, list_words_);
        return true;
      case At::kSendList:
        at_ = At::kListed;
        *step = proof_to_peer(kListAt, list_words_);
        return true;
      case At::kListed:
        at_ = At::kStart;
        *step = arrived(1);
        return true;
      case At::kStart:
        at_ = plan_.ticket != nullptr ? At::kTicket : At::kRange;
        if (plan_.remote != nullptr && !plan_.needs.has_host_end) begin_copies();
        *step = {Step::kWait, transfer_->start_[start_index()].address, nullptr, 1};
        return true;
      case At::kTicket:
        at_ = At::kRange;
        *step = {Step::kWait, transfer_->link_->own_flag(plan_.ticket->use().slot, 0), nullptr,
                 plan_.ticket->use().epoch};
        return true;
      case At::kRange:
        at_ = At::kCopies;
        if (transfer_->spans_.empty()) return next(step);
        *step = {Step::kRangeStart, nullptr, transfer_->spans_[start_index()].c_str(), 0};
        return true;
      case At::kCopies:
        if (next_copy(step)) return true;
        at_ = plan_.is_proven ? At::kAdd : (plan_.needs.comparison ? At::kVerify : behind_copies());
        tensor_ = 0;
        return next(step);
      case At::kVerify:
        if (next_comparison(step)) return true;
        at_ = behind_copies();
        return next(step);
      case At::kAdd:
        if (next_addition(step)) return true;
        at_ = At::kSum;
        *step =
            transfer_->host_copies_->tell_sum(reinterpret_cast<uint64_t*>(transfer_->ids_->ids() + layer_));
        return true;
      case At::kSum:
        at_ = At::kSendSum;
        *step = proof_to_device(static_cast<size_t>(layer_), 1);
        return true;
      case At::kSendSum:
        at_ = behind_copies();
        *step = proof_to_peer(static_cast<size_t>(layer_), 1);
        return true;
      case At::kMark:
        at_ = At::kConfirmed;
        *step = transfer_->host_copies_->mark();
        return true;
      case At::kConfirmed:
        at_ = At::kLayerEnd;
        *step = {Step::kWait, transfer_->confirmed_.address, nullptr, static_cast<uint64_t>(layer_) + 1};
        return true;
      case At::kLayerEnd: {
        const int64_t layer = layer_++;
        tensor_ = 0;
        const bool is_last = layer_ == plan_.local_layers.layers;
        at_ = is_last || transfer_->is_layered() ? At::kRangeEnd : At::kCopies;
        if (!transfer_->slot_) return next(step);
        const auto [slot, epoch] = *transfer_->slot_;
        if (plan_.is_proven) {  // the flag is the receiver's to set
          *step = arrived(static_cast<uint64_t>(layer) + 2);
          return true;
        }
        *step = {Step::kRemoteWrite,
                 transfer_->link_->peer_flag(slot, plan_.remote_layers.first_layer + layer), nullptr, epoch};
        return true;
      }
      case At::kRangeEnd:
        at_ = layer_ == plan_.local_layers.layers ? At::kSettle : At::kStart;
        if (transfer_->spans_.empty()) return next(step);
        *step = {Step::kRangeEnd, nullptr, nullptr, 0};
        return true;
      case At::kSettle:
        at_ = plan_.is_proven ? At::kFound : At::kDone;
        *step = {Step::kSettle, nullptr, nullptr, 0};
        return true;
      case At::kFound:
        at_ = At::kDone;
        *step = {Step::kWait, transfer_->link_->own_credit(transfer_->slot_->slot), nullptr,
                 chunk_count(transfer_->slot_->epoch, kAllIsFound)};
        return true;
      case At::kDone:
        // A host function cannot stop its stream, so where it may fail the stream does not open the gate
        // itself: the watchdog does, once it has looked for failures.
        if (transfer_->host_copies_ != nullptr) {
          at_ = At::kEnd;
          *step = transfer_->host_copies_->last_mark();
          return true;
        }
        at_ = notify_host_ ? At::kCall : At::kEnd;
        *step = {Step::kWrite, transfer_->done_.address, nullptr, 1};
        return true;
      case At::kCall:
        at_ = At::kEnd;
        *step = {Step::kCall, transfer_.get(), reinterpret_cast<const void*>(&TransferProgram::device_done),
                 0};
        return true;
      case At::kEnd:
        break;
    }
    return false;
  }

  void ended(uint64_t mark, int64_t code, const std::string& what) override {
    transfer_->submission_ended(mark, code, what);
  }

 private:
  enum class At {
    kList,
    kSendList,
    kListed,
    kStart,
    kTicket,
    kRange,
    kCopies,
    kVerify,
    kAdd,
    kSum,
    kSendSum,
    kMark,
    kConfirmed,
    kLayerEnd,
    kRangeEnd,
    kSettle,
    kFound,
    kDone,
    kCall,
    kEnd
  };
  // Of one run in one pair of tensors.
  struct Piece {
    Place src;
    Place dst;
    size_t bytes = 0;
    Compared compared;
  };

  static void device_done(void* transfer) { static_cast<Transfer*>(transfer)->device_done(); }
  At behind_copies() const { return transfer_->confirms_layers() ? At::kMark : At::kLayerEnd; }
  size_t start_index() const { return transfer_->is_layered() ? static_cast<size_t>(layer_) : 0; }

  // Of the proof: words of it on their way, and how many parts have arrived at the receiver.
  void write_list() {
    transfer_->ids_ = transfer_->link_->staging().take_ids(kProofWords);
    const ProvenList list{
        plan_.remote->id, plan_.remote_layers.tensors_per_layer, {plan_.runs.begin(), plan_.runs.end()}};
    list_words_ = list.write(transfer_->ids_->ids());
  }
  Step proof_to_device(size_t at, size_t words) const {
    const IdBuffer& ids = *transfer_->ids_;
    return {Step::kToDevice, ids.device.address + at * sizeof(int64_t), ids.ids() + at,
            words * sizeof(int64_t)};
  }
  Step proof_to_peer(size_t at, size_t words) const {
    return {Step::kCopy, transfer_->link_->proofs().peer(transfer_->slot_->slot) + at * sizeof(int64_t),
            transfer_->ids_->device.address + at * sizeof(int64_t), words * sizeof(int64_t)};
  }
  Step arrived(uint64_t parts) const {
    const auto [slot, epoch] = *transfer_->slot_;
    return {Step::kRemoteWrite, transfer_->link_->peer_arrived(slot), nullptr, chunk_count(epoch, parts)};
  }

  bool next_addition(Step* step) {
    if (adding_.next(step)) return true;
    Piece piece;
    if (!next_piece(&piece)) return false;
    adding_.begin(piece.src, piece.bytes);
    return adding_.next(step);
  }

  void use_local_memory() {
    const LocalCache& local = *plan_.local;
    const LayerRange& range = plan_.local_layers;
    const int64_t first = range.first_layer * range.tensors_per_layer;
    for (int64_t t = first; t < first + range.layers * range.tensors_per_layer; ++t)
      transfer_->link_->transport().use_memory({local.tensors[t], local.bytes_of(t)});
  }

  // What moves by copies of the stream alone: between device memory, and rows at a time where it can.
  void pair_tensors() {
    const LayerRange& local = plan_.local_layers;
    const int64_t count = local.layers * local.tensors_per_layer;
    const int64_t first_remote = plan_.remote_layers.first_layer * local.tensors_per_layer;
    tensors_.reserve(count);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t l = local.first_layer * local.tensors_per_layer + i;
      const int64_t r = first_remote + i;
      const int64_t stride = plan_.local->geometry.strides[l];
      TensorPair pair{plan_.remote->tensors[r].address,
                      plan_.local->tensors[l].address,
                      plan_.remote->geometry.strides[r],
                      stride,
                      stride,
                      plan_.remote->slabs[r],
                      plan_.local->slabs[l]};
      if (plan_.direction == Direction::kPull) {
        std::swap(pair.dst, pair.src);
        std::swap(pair.dst_stride, pair.src_stride);
        std::swap(pair.dst_slab, pair.src_slab);
      }
      tensors_.push_back(pair);
    }
  }

  // Of one layer where layers are released one by one, else of all at once.
  void begin_copies() {
    const bool by_layer = transfer_->is_layered();
    const auto per_layer = static_cast<size_t>(plan_.local_layers.tensors_per_layer);
    const size_t first = by_layer ? static_cast<size_t>(layer_) * per_layer : 0;
    copies_.begin(tensors_.data() + first, by_layer ? per_layer : tensors_.size(), plan_.runs.data(),
                  plan_.runs.size(), plan_.shape);
  }

  bool next_copy(Step* step) {
    if (plan_.remote == nullptr) return false;
    if (plan_.needs.has_host_end) return next_copy_on_route(step);
    Rows rows;
    if (!copies_.next(&rows)) return false;
    *step = {rows.height == 1 ? Step::kCopy : Step::kCopyRows,
             rows.dst,
             rows.src,
             rows.width,
             rows.height,
             rows.dst_pitch,
             rows.src_pitch};
    return true;
  }

  bool next_copy_on_route(Step* step) {
    if (route_.next(step)) return true;
    Piece piece;
    if (!next_piece(&piece)) return false;
    route_.begin(piece.dst, piece.src, piece.bytes);
    return route_.next(step);
  }

  bool next_comparison(Step* step) {
    if (plan_.remote == nullptr) return false;
    if (verification_.next(step)) return true;
    Piece piece;
    if (!next_piece(&piece)) return false;
    verification_.begin(piece.src, piece.dst, piece.bytes, piece.compared);
    return verification_.next(step);
  }

  // Of the layer, one after the other.
  bool next_piece(Piece* piece) {
    const int64_t per_layer = plan_.local_layers.tensors_per_layer;
    if (plan_.runs.empty() || tensor_ == per_layer) return false;
    const int64_t local_tensor = (plan_.local_layers.first_layer + layer_) * per_layer + tensor_;
    const int64_t remote_tensor = (plan_.remote_layers.first_layer + layer_) * per_layer + tensor_;
    Place src = plan_.local->tensors[local_tensor];
    Place dst = plan_.remote->tensors[remote_tensor];
    int64_t src_stride = plan_.local->geometry.strides[local_tensor];
    int64_t dst_stride = plan_.remote->geometry.strides[remote_tensor];
    const int64_t local_stride = src_stride;
    if (plan_.direction == Direction::kPull) {
      std::swap(src, dst);
      std::swap(src_stride, dst_stride);
    }
    const Run& run = plan_.runs[run_];
    const Span span = span_of(plan_.shape, run, src_stride, dst_stride, local_stride);
    src.address += span.src;
    dst.address += span.dst;
    const bool src_is_entry = plan_.shape.layout != Layout::kBlocks;
    const bool dst_is_entry = plan_.shape.layout == Layout::kEntry;
    piece->src = src;
    piece->dst = dst;
    piece->bytes = static_cast<size_t>(span.bytes);
    Compared& compared = piece->compared;
    compared.tensor = local_tensor;
    compared.is_push = plan_.direction == Direction::kPush;
    compared.src_is_entry = src_is_entry;
    compared.dst_is_entry = dst_is_entry;
    compared.src = src_is_entry ? plan_.shape.src_entry : run.src;
    compared.dst = dst_is_entry ? plan_.shape.dst_entry : run.dst;
    compared.block_bytes = static_cast<size_t>(dst_stride);
    if (++run_ == plan_.runs.size()) {
      run_ = 0;
      ++tensor_;
    }
    return true;
  }

  const std::shared_ptr<Transfer> transfer_;
  const TransferPlan& plan_;
  const bool notify_host_;
  Route route_;                // where host memory takes part
  Verification verification_;  // where it is asked for
  Adding adding_;              // likewise, of a proven push
  size_t list_words_ = 0;
  std::vector<TensorPair> tensors_;  // where it does not
  Copies copies_;
  At at_ = At::kStart;
  int64_t layer_ = 0;  // of the range
  int64_t tensor_ = 0;
  size_t run_ = 0;
};

std::unique_ptr<Program> make_transfer_program(std::shared_ptr<Transfer> transfer, bool notify_host) {
  return std::make_unique<TransferProgram>(std::move(transfer), notify_host);
}

}  // namespace datadist
