#pragma once

#include <optional>

#include "emulator/futex.h"

namespace emu {

using Clock = std::chrono::steady_clock;
using Deadline = std::optional<Clock::time_point>;  // none: wait for ever

// Wakes threads that wait for a condition kept elsewhere in atomics. Raising it costs one load when nobody
// waits. The condition must be stored with sequential consistency before raise(), and loaded so in the
// predicate.
class Signal {
 public:
  void raise() {
    if (waiters_.load() == 0) return;
    generation_.fetch_add(1);
    futex_wake_all(&generation_);
  }

  // False when the deadline passed first.
  template <class Predicate>
  bool wait(Predicate&& holds, Deadline deadline) {
    if (holds()) return true;
    waiters_.fetch_add(1);
    bool answer = true;
    for (;;) {
      const uint32_t seen = generation_.load();
      if (holds()) break;
      if (!deadline) {
        futex_wait(&generation_, seen);
        continue;
      }
      const auto left = *deadline - Clock::now();
      if (left.count() <= 0) {
        answer = false;
        break;
      }
      futex_wait(&generation_, seen, left);
    }
    waiters_.fetch_sub(1);
    return answer;
  }

 private:
  std::atomic<uint32_t> generation_{0};
  std::atomic<uint32_t> waiters_{0};
};

// ACL's convention: -1 waits for ever.
inline Deadline deadline_in_ms(int32_t timeout_ms) {
  if (timeout_ms < 0) return std::nullopt;
  return Clock::now() + std::chrono::milliseconds(timeout_ms);
}

}  // namespace emu
