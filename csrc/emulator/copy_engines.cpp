#include "emulator/copy_engines.h"

#include <algorithm>
#include <chrono>
#include <system_error>
#include <thread>

#include "emulator/error.h"
#include "emulator/futex.h"
#include "emulator/thread.h"

namespace emu {
namespace {

// Looks for work before an engine sleeps: between two copies of a row there is about a microsecond.
constexpr int kLooks = 400;
// Looks for the end of the others' parts before the caller sleeps: a part takes microseconds, unless the
// thread that does it lost its core.
constexpr int kLooksForEnd = 2000;
// After a copy whose engine lost its core, copies go without help for so many times as long as that took more
// than the engine's help had saved: on a machine that is busy with something else, waiting for engines costs
// at most this part of the time. A thread that takes a core for 0.1 ms between two copies of 4 MiB is no
// reason.
constexpr int kRest = 10;

int64_t now_ns() { return std::chrono::steady_clock::now().time_since_epoch() / std::chrono::nanoseconds(1); }

size_t spare_cores() {
  const size_t cores = std::thread::hardware_concurrency();  // that this process may use
  return cores == 0 ? 0 : cores - 1;
}

}  // namespace

struct CopyEngines::Work {
  size_t parts;
  DoPart do_part;
  const void* work;
  std::atomic<size_t> next{0};

  // How many of them this thread did.
  size_t do_parts() {
    size_t done = 0;
    for (size_t part = next.fetch_add(1, std::memory_order_relaxed); part < parts;
         part = next.fetch_add(1, std::memory_order_relaxed)) {
      do_part(work, part);
      ++done;
    }
    return done;
  }
};

// The state shares its word with a number that each claim raises: a caller sees its own work in it only.
class CopyEngines::Engine {
 public:
  explicit Engine(std::atomic<uint64_t>* parts_done) : parts_done_(parts_done) {}

  // The claim, or 0.
  uint32_t claim(bool also_asleep) {
    if (!also_asleep && asleep_.load(std::memory_order_relaxed) != 0) return 0;
    uint32_t seen = state_.load(std::memory_order_relaxed);
    if ((seen & kState) != kIdle) return 0;
    const uint32_t claim = (seen & ~kState) + kNext;
    return state_.compare_exchange_strong(seen, claim | kClaimed) ? claim | kClaimed : 0;
  }

  void give(uint32_t claim, Work* work) {
    work_ = work;
    state_.store((claim & ~kState) | kGiven);
    if (asleep_.load() != 0) futex_wake_all(&state_);
  }

  // Returns when the engine does not touch the work any more. True when that took long.
  bool take_back(uint32_t claim) {
    const uint32_t number = claim & ~kState;
    const uint32_t working = number | kWorking;
    uint32_t given = number | kGiven;
    if (state_.compare_exchange_strong(given, number | kIdle)) return false;
    for (int i = 0; i < kLooksForEnd; ++i) {
      if (state_.load(std::memory_order_acquire) != working) return false;
      cpu_relax();
    }
    sleeping_callers_.fetch_add(1);
    while (state_.load() == working) futex_wait(&state_, working);
    sleeping_callers_.fetch_sub(1);
    return true;
  }

  void work() {
    for (;;) {
      const uint32_t number = take();
      parts_done_->fetch_add(work_->do_parts(), std::memory_order_relaxed);
      state_.store(number | kIdle);
      if (sleeping_callers_.load() != 0) futex_wake_all(&state_);
    }
  }

 private:
  enum : uint32_t { kIdle, kClaimed, kGiven, kWorking, kState = 3, kNext = 4 };

  bool begin(uint32_t seen) {
    return (seen & kState) == kGiven && state_.compare_exchange_strong(seen, (seen & ~kState) | kWorking);
  }

  uint32_t take() {
    for (int i = 0; i < kLooks; ++i) {
      const uint32_t seen = state_.load(std::memory_order_relaxed);
      if (begin(seen)) return seen & ~kState;
      cpu_relax();
    }
    asleep_.store(1);
    for (;;) {
      const uint32_t seen = state_.load();
      if (begin(seen)) {
        asleep_.store(0);
        return seen & ~kState;
      }
      if ((seen & kState) != kGiven) futex_wait(&state_, seen);
    }
  }

  std::atomic<uint64_t>* const parts_done_;
  Work* work_ = nullptr;  // written by who has claimed it
  std::atomic<uint32_t> state_{kIdle};
  std::atomic<uint32_t> asleep_{0};
  std::atomic<uint32_t> sleeping_callers_{0};
};

CopyEngines::CopyEngines() : CopyEngines(spare_cores()) {}
CopyEngines::CopyEngines(size_t count) : count_(std::min(count, kMost)) {}
CopyEngines::~CopyEngines() = default;

// Fewer than asked for where the process may not have more threads.
size_t CopyEngines::start() {
  std::call_once(once_, [this] {
    for (size_t i = 0; i < count_; ++i) {
      engines_[i] = std::make_unique<Engine>(&parts_of_helpers_);
      try {
        start_thread(text("npu-copy-%zu", i), [&engine = *engines_[i]] { engine.work(); });
      } catch (const std::system_error&) {
        return;
      }
      started_.store(i + 1, std::memory_order_release);
    }
  });
  return started_.load(std::memory_order_acquire);
}

bool CopyEngines::rests() const {
  const int64_t until = rests_until_.load(std::memory_order_relaxed);
  return until != 0 && now_ns() < until;
}

void CopyEngines::run(size_t parts, DoPart do_part, const void* work, bool wakes) {
  Work shared{parts, do_part, work};
  struct Help {
    Engine* engine;
    uint32_t claim;
  };
  std::array<Help, kMost> help;
  size_t helpers = 0;
  const size_t callers = callers_.fetch_add(1, std::memory_order_relaxed) + 1;
  const size_t idle_cores = count_ + 1 > callers ? count_ + 1 - callers : 0;
  const size_t wanted = rests() ? 0 : std::min(parts - 1, idle_cores);
  if (wanted > 0) {
    const size_t count = wakes ? start() : started_.load(std::memory_order_acquire);
    for (size_t i = 0; i < count && helpers < wanted; ++i) {
      const uint32_t claim = engines_[i]->claim(wakes);
      if (claim != 0) help[helpers++] = {engines_[i].get(), claim};
    }
  }
  const int64_t began = helpers > 0 ? now_ns() : 0;
  for (size_t i = 0; i < helpers; ++i) help[i].engine->give(help[i].claim, &shared);
  const auto own = static_cast<int64_t>(shared.do_parts());
  const int64_t through = helpers > 0 ? now_ns() : 0;
  bool was_held_up = false;
  for (size_t i = 0; i < helpers; ++i) was_held_up |= help[i].engine->take_back(help[i].claim);
  if (was_held_up) {
    const int64_t now = now_ns();
    // The caller alone would have taken that long for what the others did.
    const int64_t saved = own == 0 ? 0 : (through - began) / own * (static_cast<int64_t>(parts) - own);
    const int64_t lost = now - through - saved;
    if (lost > 0) rests_until_.store(now + kRest * lost, std::memory_order_relaxed);
  }
  callers_.fetch_sub(1, std::memory_order_relaxed);
}

}  // namespace emu
