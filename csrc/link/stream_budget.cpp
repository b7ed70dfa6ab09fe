#include "link/stream_budget.h"

namespace datadist {

std::shared_ptr<void> StreamBudget::take() {
  size_t taken = taken_->load();
  do {
    if (taken >= limit_.load()) return nullptr;
  } while (!taken_->compare_exchange_weak(taken, taken + 1));
  return share();
}

std::shared_ptr<void> StreamBudget::take_anyway() {
  taken_->fetch_add(1);
  return share();
}

std::shared_ptr<void> StreamBudget::share() const {
  // Not this: a lane may outlive the engine that it came from.
  return {taken_.get(), [taken = taken_](void*) { taken->fetch_sub(1); }};
}

void StreamBudget::add_limit(size_t streams) {
  std::lock_guard lock(mutex_);
  limits_.insert(streams);
  settle();
}

void StreamBudget::remove_limit(size_t streams) {
  std::lock_guard lock(mutex_);
  if (const auto found = limits_.find(streams); found != limits_.end()) limits_.erase(found);
  settle();
}

void StreamBudget::settle() { limit_ = limits_.empty() ? SIZE_MAX : *limits_.begin(); }

}  // namespace datadist
