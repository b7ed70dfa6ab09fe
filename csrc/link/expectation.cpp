#include "link/expectation.h"

#include <algorithm>
#include <utility>

#include "acl/queue.h"
#include "acl/stream.h"
#include "error.h"
#include "link/engine.h"
#include "link/spans.h"
#include "link/ticket.h"
#include "messages/messages.h"

namespace datadist {
namespace {

constexpr int64_t kSkipped = -1;

}  // namespace

class Expectation::Program : public datadist::Program {
 public:
  explicit Program(std::shared_ptr<Expectation> expectation)
      : expectation_(std::move(expectation)), link_(*expectation_->link_) {}

  void prepare() override {
    const auto& list = expectation_->list_;
    if (expectation_->ids_ == nullptr) expectation_->ids_ = link_.staging().take_ids(list.size());
    ids_ = expectation_->ids_.get();
    std::copy(list.begin(), list.end(), ids_->ids());
    if (expectation_->is_proven_ && !make_inspection()) return;
    chunk_bytes_ = link_.staging().own_chunk_bytes();
    begin_layer();
    PackedPiece piece;
    for (int64_t layer = 0; layer < expectation_->layers_.count; ++layer) {
      Packing packing = packing_of(layer);
      for (; !packing.is_at_end(); packing.next_chunk(), ++chunks_) {
        while (packing.next(&piece)) {
        }
      }
    }
  }

  bool next(Step* step) override {
    const auto [slot, epoch] = expectation_->use_;
    Inspection* const inspection = expectation_->inspection_.get();
    if (expectation_->is_proven_ && inspection == nullptr) return false;
    switch (at_) {
      case At::kIds:
        at_ = At::kFirstCredits;
        *step = {Step::kToDevice, ids_->device.address, ids_->ids(),
                 expectation_->list_.size() * sizeof(int64_t)};
        return true;
      case At::kFirstCredits:
        at_ = At::kArrived;
        *step = {Step::kRemoteWrite, link_.peer_credit(slot), nullptr, chunk_count(epoch, kChunksPerWindow)};
        return true;
      case At::kArrived:
        at_ = At::kRange;
        *step = {Step::kWait, link_.own_arrived(slot), nullptr, chunk_count(epoch, chunk_ + 1)};
        return true;
      case At::kRange:
        at_ = At::kScatter;
        if (!begins_layer_ || expectation_->spans_.empty()) return next(step);
        begins_layer_ = false;
        *step = {Step::kRangeStart, nullptr, expectation_->spans_[static_cast<size_t>(layer_)].c_str(), 0};
        return true;
      case At::kScatter:
        if (next_scatter(step)) return true;
        packing_.next_chunk();
        at_ = packing_.is_at_end() ? At::kPieces : At::kCredit;
        return next(step);
      case At::kPieces:
        if (inspection == nullptr || leaves_gaps()) {
          at_ = At::kFlag;
          return next(step);
        }
        if (inspection->next_of_piece(step)) return true;
        if (begin_piece()) return next(step);
        piece_ = {};
        at_ = At::kVerdict;
        return next(step);
      case At::kVerdict:
        if (inspection->next_of_verdict(layer_, step)) return true;
        at_ = At::kFlag;
        return next(step);
      case At::kFlag:
        at_ = At::kRangeEnd;
        *step = {Step::kWrite, link_.own_flag(slot, expectation_->layers_.first + layer_), nullptr, epoch};
        if (++layer_ < expectation_->layers_.count) begin_layer();
        return true;
      case At::kRangeEnd:
        at_ = At::kCredit;
        if (expectation_->spans_.empty()) return next(step);
        *step = {Step::kRangeEnd, nullptr, nullptr, 0};
        return true;
      case At::kCredit:
        ++chunk_;
        at_ = chunk_ == chunks_ ? At::kFound : At::kArrived;
        if (chunk_ - 1 + kChunksPerWindow >= chunks_) return next(step);
        *step = {Step::kRemoteWrite, link_.peer_credit(slot), nullptr,
                 chunk_count(epoch, chunk_ + kChunksPerWindow)};
        return true;
      case At::kFound:
        at_ = At::kEnd;
        if (inspection == nullptr) return false;
        *step = {Step::kRemoteWrite, link_.peer_credit(slot), nullptr, chunk_count(epoch, kAllIsFound)};
        return true;
      case At::kEnd:
        break;
    }
    return false;
  }

  void ended(uint64_t mark, int64_t code, const std::string& what) override {
    expectation_->submission_ended(mark, code, what);
  }

 private:
  enum class At {
    kIds,
    kFirstCredits,
    kArrived,
    kRange,
    kScatter,
    kPieces,
    kVerdict,
    kFlag,
    kRangeEnd,
    kCredit,
    kFound,
    kEnd
  };

  bool make_inspection() {
    try {
      auto inspection = std::make_unique<Inspection>(expectation_->link_, expectation_->use_.slot);
      std::lock_guard lock(expectation_->mutex_);
      expectation_->inspection_ = std::move(inspection);
      return true;
    } catch (const Error& error) {
      std::lock_guard lock(expectation_->mutex_);
      expectation_->failure_ = {error.code(), error.what()};
      return false;
    }
  }

  // Of what was skipped nothing can be compared; the ticket says LLM_PARAM_INVALID for it.
  bool leaves_gaps() const { return expectation_->bad_.has_value(); }

  // The blocks of the layer, one by one: as they were sent.
  bool begin_piece() {
    if (piece_.tensor == expectation_->layers_.tensors_per_layer) return false;
    const int64_t tensor = first_tensor(layer_) + piece_.tensor;
    const int64_t stride = expectation_->cache_->geometry.strides[tensor];
    Place arrived = expectation_->cache_->tensors[tensor];
    arrived.address += expectation_->list_[piece_.first] * stride;
    expectation_->inspection_->begin(arrived, static_cast<size_t>(stride));
    if (++piece_.first == static_cast<int64_t>(expectation_->list_.size())) {
      piece_.first = 0;
      ++piece_.tensor;
    }
    return true;
  }

  int64_t first_tensor(int64_t layer) const {
    return (expectation_->layers_.first + layer) * expectation_->layers_.tensors_per_layer;
  }

  Packing packing_of(int64_t layer) const {
    return {expectation_->cache_->geometry.strides.data() + first_tensor(layer),
            expectation_->layers_.tensors_per_layer, static_cast<int64_t>(expectation_->list_.size()),
            chunk_bytes_};
  }

  void begin_layer() {
    packing_ = packing_of(layer_);
    begins_layer_ = true;
  }

  // The next blocks of the chunk that lie in a row without one that is skipped.
  bool next_scatter(Step* step) {
    const auto& list = expectation_->list_;
    while (true) {
      if (left_.blocks == 0 && !packing_.next(&left_)) return false;
      const int64_t tensor = first_tensor(layer_) + left_.tensor;
      const auto stride = static_cast<size_t>(expectation_->cache_->geometry.strides[tensor]);
      PackedPiece run = left_;
      run.blocks = 0;
      while (left_.blocks > 0 && list[left_.first] != kSkipped) {
        drop_one(stride);
        ++run.blocks;
      }
      while (left_.blocks > 0 && list[left_.first] == kSkipped) drop_one(stride);
      if (run.blocks == 0) continue;
      const uint32_t window = expectation_->offer_.window;
      *step = {Step::kScatter, expectation_->cache_->tensors[tensor].address,
               link_.staging().own_chunk(window, chunk_) + run.offset, stride};
      step->height = static_cast<size_t>(run.blocks);
      step->ids = ids_->on_device() + run.first;
      step->rows = expectation_->cache_->geometry.num_blocks;
      return true;
    }
  }

  void drop_one(size_t stride) {
    ++left_.first;
    --left_.blocks;
    left_.offset += stride;
  }

  const std::shared_ptr<Expectation> expectation_;
  Link& link_;
  const IdBuffer* ids_ = nullptr;
  size_t chunk_bytes_ = 0;
  uint64_t chunks_ = 0;
  Packing packing_;
  PackedPiece left_;
  PackedPiece piece_;  // tensor and place in the list of the next block to look at
  At at_ = At::kIds;
  int64_t layer_ = 0;
  bool begins_layer_ = true;
  uint64_t chunk_ = 0;
};

Expectation::Expectation(std::shared_ptr<Link> link, SlotUse use, OfferWord offer,
                         std::shared_ptr<LocalCache> cache, Layers layers, std::vector<int64_t> ids,
                         bool is_proven)
    : link_(std::move(link)),
      use_(use),
      offer_(offer),
      layers_(layers),
      is_proven_(is_proven),
      cache_(std::move(cache)),
      lane_(link_->take_scatter_lane()),
      list_(std::move(ids)) {
  if (!spans::are_wanted()) return;
  const auto blocks = static_cast<int64_t>(offer_.blocks);
  for (int64_t layer = layers_.first; layer < layers_.first + layers_.count; ++layer) {
    int64_t bytes = 0;
    for (int64_t i = 0; i < layers_.tensors_per_layer; ++i)
      bytes += blocks * cache_->geometry.strides[layer * layers_.tensors_per_layer + i];
    spans_.push_back(spans::text("scatter", {layer, 1, blocks, bytes}, *link_));
  }
}

Expectation::~Expectation() {
  if (ready_) link_->engine().words().give_back(*ready_);
  link_->staging().give_back_ids(std::move(ids_));
  if (state_ == State::kWaiting) link_->give_back_scatter_lane(lane_);  // its ticket was refused after all
}

void Expectation::await_ids() {
  ready_ = link_->engine().words().take();
  acl::ContextScope restore;
  DATADIST_ACL(acl::set_device(link_->engine().device()));
  ids_ = link_->staging().take_ids(offer_.blocks);
}

// What a kernel is told to write is what was looked at here: a list of our own, not the caller's tensor.
void Expectation::read_ids() {
  const int64_t* const read = ids_->ids();
  std::vector<bool> is_taken(static_cast<size_t>(cache_->geometry.num_blocks), false);
  size_t skipped = 0;
  std::string first;
  for (size_t i = 0; i < offer_.blocks; ++i) {
    const int64_t id = read[i];
    const bool is_inside = id >= 0 && id < cache_->geometry.num_blocks;
    if (is_inside && !is_taken[id]) {
      is_taken[id] = true;
      list_.push_back(id);
      continue;
    }
    if (skipped++ == 0)
      first = join("dst_blocks[", i, "] = ", id,
                   is_inside ? " is there twice" : " is outside the cache, which has ",
                   is_inside ? "" : join(cache_->geometry.num_blocks, " blocks"));
    list_.push_back(kSkipped);
  }
  if (skipped > 0)
    bad_ =
        render(Message::blocks_were_skipped, {{"value", skipped}, {"count", offer_.blocks}, {"why", first}});
}

void Expectation::start_if_ready(bool is_packed) {
  {
    std::lock_guard lock(mutex_);
    is_packed_ = is_packed_ || is_packed;
    if (state_ != State::kWaiting || !is_packed_ || list_.empty() || (bad_ && !is_reported_)) return;
    if (!link_->staging().claim(offer_.window, this)) return;
    state_ = State::kRunning;
  }
  link_->submit_scatter(lane_, std::make_unique<Program>(shared_from_this()));
}

void Expectation::tick(const Tick& tick, SentWord sent, bool is_reported) {
  {
    std::lock_guard lock(mutex_);
    is_reported_ = is_reported;
    if (ready_ && !is_read_ && ready_->seen() != 0) {
      is_read_ = true;
      if (state_ == State::kWaiting) read_ids();
    }
    if (state_ == State::kRunning && inspection_ != nullptr) {
      if (const auto found = inspection_->look(tick); found && !failure_) failure_ = {kFailed, *found};
    }
    if (state_ == State::kRunning && !failure_ && submission_has_ended_ && lane_->has_passed(mark_)) {
      if (!lane_->is_dropped()) sender_is_done_ = true;  // all of its chunks have come
      end();
    }
    if (state_ == State::kCut && lane_->is_dropped()) end();
    if (state_ != State::kWaiting) return;
    if (sent.state != SentWord::kNone && !sent.is_offer) {  // it goes direct
      end();
      return;
    }
  }
  start_if_ready(sent.is_packed);
}

void Expectation::cut() {
  std::lock_guard lock(mutex_);
  if (state_ == State::kWaiting) {
    end();
  } else if (state_ == State::kRunning) {
    state_ = State::kCut;
    link_->drop_scatter_lane(lane_);
  }
}

void Expectation::sender_is_done() {
  std::lock_guard lock(mutex_);
  sender_is_done_ = true;
  if (state_ == State::kOver) link_->staging().release(offer_.window, this);
}

// With the lock.
void Expectation::end() {
  state_ = State::kOver;
  if (sender_is_done_) link_->staging().release(offer_.window, this);
  link_->give_back_scatter_lane(lane_);
  if (are_ids_read()) link_->staging().give_back_ids(std::move(ids_));
  inspection_.reset();
  cache_.reset();
}

void Expectation::submission_ended(uint64_t mark, int64_t code, const std::string& what) {
  bool is_refused = false;
  {
    std::lock_guard lock(mutex_);
    submission_has_ended_ = true;
    mark_ = mark;
    is_refused = code != kSuccess && state_ == State::kRunning;
  }
  if (is_refused) link_->scatter_failed(what);  // what is behind it would never be scattered
  link_->engine().wake_soon();
}

bool Expectation::is_over() const {
  std::lock_guard lock(mutex_);
  return state_ == State::kOver && are_ids_read();
}

bool Expectation::is_direct() const {
  std::lock_guard lock(mutex_);
  return !is_packed_;
}

std::optional<std::pair<int64_t, std::string>> Expectation::failure() const {
  std::lock_guard lock(mutex_);
  return failure_;
}

std::optional<std::string> Expectation::bad_ids() const {
  std::lock_guard lock(mutex_);
  return bad_;
}

std::shared_ptr<Expectation> make_expectation(const std::shared_ptr<Ticket>& ticket, const int64_t* ids,
                                              size_t count, bool on_device) {
  constexpr const char* asked = "expect";
  Link& link = ticket->link_of_expectation();
  const OfferWord offer = ticket->offer();
  const Expectation::Layers layers{ticket->first_layer(), ticket->last_layer() - ticket->first_layer() + 1,
                                   offer.tensors_per_layer};
  auto cache = link.caches().find_id(offer.cache, asked);
  if (!cache->receives)
    refuse(Message::offer_makes_no_sense,
           {{"asked", asked},
            {"peer", link.peer().name},
            {"value", join("blocks for cache ", offer.cache, ", which was registered with receives=False")}});
  const auto& strides = cache->geometry.strides;
  const int64_t tensors = (layers.first + layers.count) * layers.tensors_per_layer;
  if (!(cache->geometry.is_blocks && cache->tensors.front().reach == Reach::kDevice &&
        layers.tensors_per_layer > 0 && tensors <= cache->geometry.num_tensors()))
    refuse(Message::offer_makes_no_sense,
           {{"asked", asked},
            {"peer", link.peer().name},
            {"value", join("layers ", layers.first, " to ", ticket->last_layer(), " of ",
                           layers.tensors_per_layer, " tensors for cache ", offer.cache)}});
  if (offer.blocks <= 0)
    refuse(Message::offer_makes_no_sense,
           {{"asked", asked}, {"peer", link.peer().name}, {"value", "no blocks"}});
  if (on_device ? count < offer.blocks : count != offer.blocks) {
    refuse(Message::other_number_of_blocks,
           {{"asked", asked}, {"value", count}, {"peer", link.peer().name}, {"count", offer.blocks}});
  }
  const int64_t largest = *std::max_element(strides.begin(), strides.end());
  const size_t chunk = link.staging().own_chunk_bytes();
  if (static_cast<size_t>(largest) > chunk)
    refuse(Message::block_does_not_fit_a_chunk, {{"asked", asked},
                                                 {"value", largest},
                                                 {"chunk", chunk},
                                                 {"part", kStagingWindows * kChunksPerWindow}});
  std::vector<int64_t> list;
  if (!on_device) {
    std::vector<bool> is_taken(static_cast<size_t>(cache->geometry.num_blocks), false);
    for (size_t i = 0; i < count; ++i) {
      if (ids[i] < 0 || ids[i] >= cache->geometry.num_blocks) {
        refuse(Message::block_outside, {{"asked", asked},
                                        {"list", "dst_blocks"},
                                        {"at", i},
                                        {"value", ids[i]},
                                        {"cache", "the cache"},
                                        {"count", cache->geometry.num_blocks}});
      }
      if (is_taken[ids[i]])
        refuse(Message::block_is_listed_twice, {{"asked", asked}, {"list", "dst_blocks"}, {"value", ids[i]}});
      is_taken[ids[i]] = true;
    }
    list.assign(ids, ids + count);
  }
  auto expectation =
      std::make_shared<Expectation>(link.shared_from_this(), ticket->use(), offer, std::move(cache), layers,
                                    std::move(list), ticket->is_proven());
  if (on_device) expectation->await_ids();
  return expectation;
}

}  // namespace datadist
