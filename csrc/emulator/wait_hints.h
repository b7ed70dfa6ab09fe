#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>

namespace emu {

// How many streams, of whatever process, sleep until a word of a memfd changes. Kept in the memfd's own last
// pages, which no program can reach, so that a write to a word that nobody waits for costs no system call.
// Several words share a count. What a killed process leaves behind costs the writers time, and no wake-up.
class WaitHints {
 public:
  static size_t room();  // bytes to add to a memfd for its hints

  // Null where the page cannot be mapped: then writers wake, and waiters look by themselves.
  static WaitHints* map(int fd);
  static void unmap(WaitHints* hints);

  // `offset`: of the word, in the memfd.
  std::atomic<uint32_t>& waiters(uint64_t offset) { return counts_[offset / sizeof(uint64_t) % kCounts]; }

  // With simulated time: when the word at that offset was written last; 0 when nothing is known of it. A few
  // words share a set of places: the one written longest ago makes room when there are more.
  void stamp(uint64_t offset, uint64_t time);
  uint64_t stamp_of(uint64_t offset);

 private:
  static constexpr size_t kCounts = 1024;
  static constexpr size_t kSets = 128;
  static constexpr uint64_t kChanging = UINT64_MAX;

  struct Stamp {
    std::atomic<uint64_t> word;  // its offset and 1; 0: none; kChanging: another word's from now on
    std::atomic<uint64_t> time;
  };
  using Set = std::array<Stamp, 8>;
  Set& set_of(uint64_t offset) { return sets_[offset / sizeof(uint64_t) % kSets]; }

  std::atomic<uint32_t> counts_[kCounts];
  Set sets_[kSets];
};

// Says for as long as it lives that somebody waits for the word.
class WaitHint {
 public:
  WaitHint(WaitHints* hints, uint64_t offset) : count_(hints ? &hints->waiters(offset) : nullptr) {
    if (count_ != nullptr) count_->fetch_add(1);
    // The caller's next look at the word comes after this, as the writer looks here after its write.
    std::atomic_thread_fence(std::memory_order_seq_cst);
  }
  ~WaitHint() {
    if (count_ != nullptr) count_->fetch_sub(1);
  }
  WaitHint(const WaitHint&) = delete;
  WaitHint& operator=(const WaitHint&) = delete;

 private:
  std::atomic<uint32_t>* const count_;
};

}  // namespace emu
