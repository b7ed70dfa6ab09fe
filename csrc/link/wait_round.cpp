#include "link/wait_round.h"

#include "error.h"

namespace datadist {

class WaitRound::Program : public datadist::Program {
 public:
  Program(std::shared_ptr<WaitRound> round, std::vector<Step> steps)
      : round_(std::move(round)), steps_(std::move(steps)) {}

  bool next(Step* step) override {
    if (at_ == steps_.size()) return false;
    *step = steps_[at_++];
    return true;
  }

  void ended(uint64_t mark, int64_t code, const std::string& what) override {
    round_->ended(mark, code, what);
  }

 private:
  const std::shared_ptr<WaitRound> round_;
  const std::vector<Step> steps_;
  size_t at_ = 0;
};

void WaitRound::submit(Feeder& feeder, std::shared_ptr<Lane> lane, std::vector<Step> steps) {
  {
    std::lock_guard lock(mutex_);
    lane_ = lane;
  }
  feeder.submit(lane, std::make_unique<Program>(shared_from_this(), std::move(steps)));
}

void WaitRound::ended(uint64_t mark, int64_t code, const std::string& what) {
  std::lock_guard lock(mutex_);
  has_ended_ = true;
  mark_ = mark;
  if (code != kSuccess) failure_ = {code, what};
}

bool WaitRound::is_done() const {
  std::lock_guard lock(mutex_);
  return is_done_;
}

bool WaitRound::is_broken() const {
  std::lock_guard lock(mutex_);
  return !is_done_ && (failure_.has_value() || lane_->is_dropped());
}

std::optional<std::pair<int64_t, std::string>> WaitRound::failure() const {
  std::lock_guard lock(mutex_);
  return is_done_ ? failure_ : std::nullopt;
}

bool WaitRound::tick(const Tick& tick) {
  std::lock_guard lock(mutex_);
  if (const uint64_t opened = opened_.seen(); opened >> kCountBits == round_) {
    open_gates_ = opened & ((uint64_t{1} << kCountBits) - 1);
    changed_.notify_all();
  }
  if (is_done_ || !has_ended_) return is_done_;
  if (!lane_->is_dropped() && !lane_->has_passed(mark_)) return false;
  if (!failure_ && lane_->is_dropped()) failure_ = {kFailed, "the stream that waited for the layers is gone"};
  if (failure_) {
    status_->set(tick, failure_->first);
    for (const LayerGate& gate : gates_) tick.write(gate.word, round_);
  }
  is_done_ = true;
  changed_.notify_all();
  return true;
}

void WaitRound::wait_on_host(int64_t layer) {
  size_t index = 0;
  while (index < gates_.size() && gates_[index].layer != layer) ++index;
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return open_gates_ > index || is_done_ || is_abandoned_; });
  require(open_gates_ > index || is_done_, kFailed, "wait_layer: nobody watches over layer ", layer,
          " any more: the device was shut down in this process");
}

void WaitRound::abandon() {
  std::lock_guard lock(mutex_);
  is_abandoned_ = true;
  changed_.notify_all();
}

}  // namespace datadist
