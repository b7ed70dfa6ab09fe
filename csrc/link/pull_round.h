// What a pull and the ticket that it was claimed with tell each other, both on the watchdog's thread and each
// under its own lock: so neither ever calls the other.
#pragma once

#include <cstdint>
#include <mutex>
#include <optional>
#include <string>
#include <utility>

#include "error.h"

namespace datadist {

class PullRound {
 public:
  using Failure = std::optional<std::pair<int64_t, std::string>>;

  // The ticket: its holder gave it up, or the link is gone.
  void give_up(int64_t code, const std::string& why) {
    std::lock_guard lock(mutex_);
    if (!given_up_) given_up_ = {code, why};
  }
  // The pull: nothing of it reads or writes any more.
  void finish(int64_t code, const std::string& why) {
    std::lock_guard lock(mutex_);
    is_finished_ = true;
    if (code != kSuccess) failure_ = {code, why};
  }

  Failure given_up() const {
    std::lock_guard lock(mutex_);
    return given_up_;
  }
  bool is_finished() const {
    std::lock_guard lock(mutex_);
    return is_finished_;
  }
  Failure failure() const {
    std::lock_guard lock(mutex_);
    return failure_;
  }

 private:
  mutable std::mutex mutex_;
  Failure given_up_;
  Failure failure_;
  bool is_finished_ = false;
};

}  // namespace datadist
