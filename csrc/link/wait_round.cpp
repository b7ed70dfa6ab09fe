#include "link/wait_round.h"

#include "messages/messages.h"

namespace datadist {

void WaitRound::make_relay(Feeder& feeder) {
  {
    std::lock_guard lock(mutex_);
    if (relay_ != nullptr) return;
  }
  auto made = std::make_shared<Relay>(feeder);  // without the lock: it may allocate
  std::lock_guard lock(mutex_);
  if (relay_ == nullptr) relay_ = std::move(made);
}

void WaitRound::start(std::vector<Step> steps, std::vector<Opening> openings) {
  std::shared_ptr<Relay> relay;
  {
    std::lock_guard lock(mutex_);
    openings_ = std::move(openings);
    has_relay_ = true;  // also where no ticket is left to wait for
    relay = relay_;
  }
  relay->start(std::move(steps));
}

void WaitRound::give_up(const std::string& why) {
  std::lock_guard lock(mutex_);
  if (is_done_) return;
  given_up_ = why;
  if (has_relay_) relay_->give_up();
}

void WaitRound::all_is_bound() {
  std::lock_guard lock(mutex_);
  is_bound_ = true;
}

void WaitRound::relay_begins() {
  std::lock_guard lock(mutex_);
  has_relay_ = true;
}

void WaitRound::op_begins() {
  std::lock_guard lock(mutex_);
  ops_wait_ = true;
}

void WaitRound::ops_have_passed(bool for_all_layers) {
  std::lock_guard lock(mutex_);
  ops_wait_ = false;
  ops_saw_all_ = for_all_layers;
}

bool WaitRound::has_passed(bool flags_are_set) const {
  std::lock_guard lock(mutex_);
  return is_bound_ && !ops_wait_ && (has_relay_ ? is_done_ : flags_are_set || ops_saw_all_);
}

bool WaitRound::is_idle() const {
  std::lock_guard lock(mutex_);
  return !ops_wait_ && (!has_relay_ || is_done_);
}

std::optional<std::string> WaitRound::given_up() const {
  std::lock_guard lock(mutex_);
  return given_up_;
}

std::optional<std::pair<int64_t, std::string>> WaitRound::failure() const {
  std::lock_guard lock(mutex_);
  return is_done_ ? failure_ : std::nullopt;
}

bool WaitRound::tick(const Tick& tick) {
  std::lock_guard lock(mutex_);
  if (!has_relay_ || is_done_ || !relay_->tick()) return is_done_;
  if (failure_ = relay_->failure(); failure_) {
    failure_->second = given_up_ ? render(Message::layers_were_not_awaited, {{"value", *given_up_}})
                                 : render(Message::layers_were_not_released, {{"value", failure_->second}});
    status_->set(tick, failure_->first);
    for (const Opening& opening : openings_) {
      if (!relay_->did(opening.step)) tick.write(opening.gate, 1);
    }
  }
  is_done_ = true;
  return true;
}

}  // namespace datadist
