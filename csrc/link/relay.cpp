#include "link/relay.h"

#include "error.h"

namespace datadist {

class Relay::Program : public datadist::Program {
 public:
  Program(std::shared_ptr<Relay> relay, std::vector<Step> steps)
      : relay_(std::move(relay)), steps_(std::move(steps)) {}

  bool next(Step* step) override {
    if (at_ == steps_.size()) return false;
    *step = steps_[at_++];
    return true;
  }

  void ended(uint64_t mark, int64_t code, const std::string& what) override {
    // The step that was handed out last is the one that the runtime refused.
    relay_->ended(mark, code, what, code == kSuccess || at_ == 0 ? at_ : at_ - 1);
  }

 private:
  const std::shared_ptr<Relay> relay_;
  const std::vector<Step> steps_;
  size_t at_ = 0;
};

Relay::Relay(Feeder& feeder) : feeder_(feeder), lane_(feeder.take_lane(SIZE_MAX, Feeder::Budget::kExempt)) {
  require(lane_ != nullptr, kFailed, "bind: the device is shut down");
}

Relay::~Relay() {
  if (!has_started_) feeder_.give_back_lane(lane_);
}

void Relay::start(std::vector<Step> steps) {
  {
    std::lock_guard lock(mutex_);
    has_started_ = true;
  }
  feeder_.submit(lane_, std::make_unique<Program>(shared_from_this(), std::move(steps)));
}

void Relay::ended(uint64_t mark, int64_t code, const std::string& what, size_t steps) {
  std::lock_guard lock(mutex_);
  has_ended_ = true;
  mark_ = mark;
  steps_ = steps;
  if (code != kSuccess) failure_ = {code, what};
}

bool Relay::tick() {
  std::lock_guard lock(mutex_);
  if (is_done_ || !has_ended_ || !lane_->has_passed(mark_)) return is_done_;
  if (lane_->is_dropped()) {
    steps_ = 0;  // how far it got nobody knows
    if (!failure_) failure_ = {kFailed, "its stream is gone"};
  }
  is_done_ = true;
  feeder_.give_back_lane(lane_);
  return true;
}

bool Relay::is_done() const {
  std::lock_guard lock(mutex_);
  return is_done_;
}

bool Relay::has_started() const {
  std::lock_guard lock(mutex_);
  return has_started_;
}

std::optional<std::pair<int64_t, std::string>> Relay::failure() const {
  std::lock_guard lock(mutex_);
  return is_done_ ? failure_ : std::nullopt;
}

bool Relay::did(size_t step) const {
  std::lock_guard lock(mutex_);
  return is_done_ && step < steps_;
}

void Relay::give_up() { feeder_.drop_lane(lane_); }

}  // namespace datadist
