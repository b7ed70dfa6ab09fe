#include "link/proven_push.h"

#include "error.h"
#include "link/engine.h"
#include "messages/messages.h"

namespace datadist {

// No step: what may have to wait is done on the feeding thread, which the watchdog is not.
class ProvenPush::SetUp : public Program {
 public:
  explicit SetUp(std::shared_ptr<ProvenPush> push) : push_(std::move(push)) {}
  void prepare() override { push_->set_up(); }
  bool next(Step*) override { return false; }
  void ended(uint64_t, int64_t code, const std::string& what) override { push_->refused(code, what); }

 private:
  const std::shared_ptr<ProvenPush> push_;
};

class ProvenPush::Listing : public Program {
 public:
  explicit Listing(std::shared_ptr<ProvenPush> push) : push_(std::move(push)) {}
  bool next(Step* step) override {
    const auto [slot, epoch] = push_->use_;
    constexpr size_t at = kListAt;
    switch (step_++) {
      case 0:
        *step = {Step::kWait, push_->link_->own_arrived(slot), nullptr, chunk_count(epoch, 1)};
        return true;
      case 1:
        *step = {Step::kToHost, push_->inspection_->list() + at,
                 push_->link_->proofs().own(slot) + at * sizeof(uint64_t),
                 (kProofWords - at) * sizeof(uint64_t)};
        return true;
      case 2:
        *step = {Step::kWrite, push_->is_listed_->address, nullptr, 1};
        return true;
      default:
        return false;
    }
  }
  void ended(uint64_t, int64_t code, const std::string& what) override { push_->refused(code, what); }

 private:
  const std::shared_ptr<ProvenPush> push_;
  int step_ = 0;
};

class ProvenPush::Looking : public Program {
 public:
  explicit Looking(std::shared_ptr<ProvenPush> push) : push_(std::move(push)) {}

  bool next(Step* step) override {
    const auto [slot, epoch] = push_->use_;
    switch (at_) {
      case At::kArrived:
        at_ = At::kPieces;
        *step = {Step::kWait, push_->link_->own_arrived(slot), nullptr,
                 chunk_count(epoch, static_cast<uint64_t>(layer_) + 2)};
        return true;
      case At::kPieces:
        if (push_->inspection_->next_of_piece(step)) return true;
        if (begin_piece()) return next(step);
        at_ = At::kVerdict;
        return next(step);
      case At::kVerdict:
        if (push_->inspection_->next_of_verdict(layer_, step)) return true;
        *step = {Step::kWrite, push_->link_->own_flag(slot, push_->first_layer_ + layer_), nullptr, epoch};
        tensor_ = 0;
        at_ = ++layer_ == push_->layers_ ? At::kCredit : At::kArrived;
        return true;
      case At::kCredit:
        at_ = At::kEnd;
        *step = {Step::kRemoteWrite, push_->link_->peer_credit(slot), nullptr,
                 chunk_count(epoch, kAllIsFound)};
        return true;
      case At::kEnd:
        break;
    }
    return false;
  }

  void ended(uint64_t mark, int64_t code, const std::string& what) override {
    push_->refused(code, what);
    push_->looking_ended(mark);
  }

 private:
  enum class At { kArrived, kPieces, kVerdict, kCredit, kEnd };

  bool begin_piece() {
    const ProvenList& list = push_->list_;
    if (list.runs.empty() || tensor_ == list.tensors_per_layer) return false;
    const int64_t tensor = (push_->first_layer_ + layer_) * list.tensors_per_layer + tensor_;
    const auto stride = push_->cache_->geometry.strides[tensor];
    const Run& run = list.runs[run_];
    Place arrived = push_->cache_->tensors[tensor];
    arrived.address += run.dst * stride;
    push_->inspection_->begin(arrived, static_cast<size_t>(run.blocks * stride));
    if (++run_ == list.runs.size()) {
      run_ = 0;
      ++tensor_;
    }
    return true;
  }

  const std::shared_ptr<ProvenPush> push_;
  At at_ = At::kArrived;
  int64_t layer_ = 0;  // of the ticket
  int64_t tensor_ = 0;
  size_t run_ = 0;
};

void ProvenPush::set_up() {
  {
    std::lock_guard lock(mutex_);
    if (state_ != State::kSetUp) return;
  }
  auto lane = link_->try_take_scatter_lane();
  if (lane == nullptr) {  // all streams are taken: the watchdog asks again
    std::lock_guard lock(mutex_);
    if (state_ == State::kSetUp) state_ = State::kNew;
    return;
  }
  std::unique_ptr<Inspection> inspection;
  std::optional<Word> word;
  try {
    inspection = std::make_unique<Inspection>(link_, use_.slot);
    word = link_->engine().words().take();
  } catch (...) {
    link_->give_back_scatter_lane(lane);
    throw;
  }
  {
    std::lock_guard lock(mutex_);
    if (state_ != State::kSetUp) {  // given up meanwhile
      link_->engine().words().give_back(*word);
      link_->give_back_scatter_lane(lane);
      return;
    }
    state_ = State::kListing;
    lane_ = lane;
    inspection_ = std::move(inspection);
    is_listed_ = word;
  }
  link_->submit_scatter(lane, std::make_unique<Listing>(shared_from_this()));
}

void ProvenPush::read_list() {
  const std::string& peer = link_->peer().name;
  list_ = ProvenList::read(inspection_->list());
  cache_ = link_->caches().find_id(list_.cache, "verify_blocks");
  const Geometry& geometry = cache_->geometry;
  const int64_t per_layer = list_.tensors_per_layer;
  if (!cache_->receives || !geometry.is_blocks || per_layer < 1 || per_layer > geometry.num_tensors() ||
      (first_layer_ + layers_) * per_layer > geometry.num_tensors()) {
    refuse(Message::proof_makes_no_sense,
           {{"peer", peer},
            {"value", join(layers_, " layers of ", per_layer, " tensors to cache ", list_.cache)}});
  }
  int64_t blocks = 0;
  for (const Run& run : list_.runs) {
    if (run.dst < 0 || run.blocks < 1 || run.dst > geometry.num_blocks - run.blocks) {
      refuse(Message::proof_makes_no_sense,
             {{"peer", peer},
              {"value", join(run.blocks, " blocks from block ", run.dst, " on to cache ", list_.cache,
                             ", which has ", geometry.num_blocks)}});
    }
    blocks += run.blocks;
  }
  // A push names no block twice: a longer list would only have us read all of the cache thousands of times.
  if (blocks > geometry.num_blocks) {
    refuse(Message::proof_makes_no_sense,
           {{"peer", peer},
            {"value", join(blocks, " blocks to cache ", list_.cache, ", which has ", geometry.num_blocks)}});
  }
}

void ProvenPush::tick(const Tick& tick) {
  std::unique_ptr<Program> next;
  std::shared_ptr<Lane> lane;
  {
    std::lock_guard lock(mutex_);
    if (state_ == State::kNew) {
      state_ = State::kSetUp;
      next = std::make_unique<SetUp>(shared_from_this());
    } else if (state_ == State::kListing && is_listed_->seen() != 0 && !failure_) {
      try {
        read_list();
        state_ = State::kRunning;
        lane = lane_;
        next = std::make_unique<Looking>(shared_from_this());
      } catch (const Error& error) {
        failure_ = {error.code(), error.what()};
      }
    } else if (state_ == State::kRunning) {
      if (const auto found = inspection_->look(tick); found && !failure_) failure_ = {kFailed, *found};
      if (!failure_ && mark_ && lane_->has_passed(*mark_)) end();
    } else if (state_ == State::kCut && lane_->is_dropped()) {
      end();
    }
  }
  if (next == nullptr) return;
  if (lane != nullptr)
    link_->submit_scatter(lane, std::move(next));
  else
    link_->submit_errand(std::move(next));
}

void ProvenPush::cut() {
  std::lock_guard lock(mutex_);
  if (state_ == State::kNew || state_ == State::kSetUp) {
    end();
  } else if (state_ == State::kListing || state_ == State::kRunning) {
    state_ = State::kCut;
    link_->drop_scatter_lane(lane_);
  }
}

bool ProvenPush::is_over() const {
  std::lock_guard lock(mutex_);
  return state_ == State::kOver;
}

std::optional<std::pair<int64_t, std::string>> ProvenPush::failure() const {
  std::lock_guard lock(mutex_);
  return failure_;
}

void ProvenPush::end() {
  state_ = State::kOver;
  acl::ContextScope restore;  // we may be the last to hold the cache
  inspection_.reset();
  if (is_listed_) link_->engine().words().give_back(*is_listed_);
  is_listed_.reset();
  if (lane_ != nullptr) link_->give_back_scatter_lane(lane_);
  cache_.reset();
}

void ProvenPush::looking_ended(uint64_t mark) {
  {
    std::lock_guard lock(mutex_);
    mark_ = mark;
  }
  link_->engine().wake_soon();
}

void ProvenPush::refused(int64_t code, const std::string& what) {
  if (code == kSuccess) return;
  std::lock_guard lock(mutex_);
  if (state_ != State::kCut && state_ != State::kOver && !failure_) failure_ = {code, what};
}

}  // namespace datadist
