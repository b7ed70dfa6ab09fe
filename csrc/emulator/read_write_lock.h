#pragma once

#include <atomic>
#include <cstdint>

#include "emulator/futex.h"

namespace emu {

// A std::shared_mutex that is never handed to somebody who waits: the last reader of pthread's passes it on
// to a waiting writer, who may be a frozen host thread, and then the device could not read any more. So a
// writer has to find it free itself; readers hold it for nanoseconds.
class ReadWriteLock {
 public:
  void lock() {
    for (;;) {
      uint32_t state = 0;
      if (state_.compare_exchange_strong(state, kWriter)) return;
      wait(state);
    }
  }
  void unlock() {
    state_.store(0);
    wake();
  }
  void lock_shared() {
    for (uint32_t state = state_.load();;) {
      if (state == kWriter) {
        wait(state);
        state = state_.load();
      } else if (state_.compare_exchange_weak(state, state + 1)) {
        return;
      }
    }
  }
  void unlock_shared() {
    if (state_.fetch_sub(1) == 1) wake();
  }

 private:
  static constexpr uint32_t kWriter = ~uint32_t{0};  // else the number of readers
  static constexpr int kLooks = 100;

  void wait(uint32_t seen) {
    for (int i = 0; i < kLooks; ++i) {
      if (state_.load(std::memory_order_relaxed) != seen) return;
      cpu_relax();
    }
    sleepers_.fetch_add(1);
    futex_wait_private(&state_, seen);
    sleepers_.fetch_sub(1);
  }
  void wake() {
    if (sleepers_.load() != 0) futex_wake_all_private(&state_);
  }

  std::atomic<uint32_t> state_{0};
  std::atomic<uint32_t> sleepers_{0};
};

}  // namespace emu
