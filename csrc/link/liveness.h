// Whether a peer lives, as its heartbeat tells: a word that it counts up as long as its watchdog runs.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>

namespace datadist {

class Liveness {
 public:
  using Clock = std::chrono::steady_clock;

  Liveness(std::chrono::milliseconds keep_alive, Clock::time_point now)
      : keep_alive_(keep_alive), alive_at_(now) {}

  // How often to count up for a peer that looks with the same patience.
  static std::chrono::milliseconds beat_every(std::chrono::milliseconds keep_alive) {
    return std::min(keep_alive / 10, std::chrono::milliseconds(50));
  }

  void restart(Clock::time_point now) { alive_at_ = now; }
  void look(uint64_t beats, Clock::time_point now) {
    if (beats == beats_) return;
    beats_ = beats;
    alive_at_ = now;
  }
  bool is_lost(Clock::time_point now) const { return now - alive_at_ > keep_alive_; }
  // Our own clock stood still, so nothing can be said of that time.
  void clock_gap(Clock::duration gap) { alive_at_ += gap; }
  uint64_t beats() const { return beats_; }

 private:
  const std::chrono::milliseconds keep_alive_;
  uint64_t beats_ = 0;
  Clock::time_point alive_at_;
};

}  // namespace datadist
