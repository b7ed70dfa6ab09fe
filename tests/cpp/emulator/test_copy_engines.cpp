// Copies that several threads share: each part is done once, and the copy not before the last of them.
#include <atomic>
#include <chrono>
#include <mutex>
#include <optional>
#include <set>
#include <thread>
#include <vector>

#include "../check.h"
#include "emulator/copy.h"
#include "emulator/copy_engines.h"

namespace emu {
namespace {

constexpr auto kPatience = std::chrono::seconds(60);

// Engines are for a process's life: their threads never end.
CopyEngines& kept(size_t count) {
  static auto& all = *new std::vector<CopyEngines*>;
  return *all.emplace_back(new CopyEngines(count));
}

struct Parts {
  explicit Parts(size_t count) : done(count) {}
  static void count(const void* work, size_t part) {
    const auto& parts = *static_cast<const Parts*>(work);
    ++const_cast<std::atomic<int>&>(parts.done[part]);
  }
  std::vector<std::atomic<int>> done;
};

TEST(emulator_copy_engines_do_each_part_once) {
  for (const size_t engines : {0, 1, 3}) {
    CopyEngines& shared = kept(engines);
    for (int round = 0; round < 2000; ++round) {
      Parts parts(1 + round % 20);
      shared.run(parts.done.size(), &Parts::count, &parts, round % 3 != 0);
      for (const auto& done : parts.done) CHECK_EQUAL(done.load(), 1);
    }
    if (engines == 0) CHECK_EQUAL(shared.parts_of_helpers(), 0u);
  }
}

// Each part waits until the other one has begun: on one thread neither would end.
struct Meeting {
  mutable std::atomic<int> begun{0};
  mutable std::atomic<bool> met{true};
  static void meet(const void* work, size_t) {
    const auto& meeting = *static_cast<const Meeting*>(work);
    meeting.begun.fetch_add(1);
    const auto deadline = std::chrono::steady_clock::now() + kPatience;
    while (meeting.begun.load() < 2) {
      if (std::chrono::steady_clock::now() > deadline) {
        meeting.met.store(false);
        return;
      }
      std::this_thread::yield();
    }
  }
};

TEST(emulator_copy_engines_work_beside_the_caller) {
  CopyEngines& engines = kept(1);
  Meeting meeting;
  engines.run(2, &Meeting::meet, &meeting, true);
  CHECK(meeting.met.load());
  CHECK_EQUAL(engines.parts_of_helpers(), 1u);
}

// The caller is through with its part at once, the engine holds on to its own for a while.
struct Slow {
  std::chrono::milliseconds own{0};  // that the caller's part takes
  std::thread::id caller = std::this_thread::get_id();
  std::chrono::steady_clock::time_point asked = std::chrono::steady_clock::now();
  mutable std::atomic<bool> has_begun{false};
  mutable std::atomic<bool> has_ended{false};
  static void run(const void* work, size_t) {
    const auto& slow = *static_cast<const Slow*>(work);
    if (std::this_thread::get_id() != slow.caller) {
      const auto until_begun = std::chrono::steady_clock::now() - slow.asked;
      slow.has_begun.store(true);
      // Long enough for the caller to go to sleep.
      std::this_thread::sleep_for(slow.own + std::chrono::milliseconds(3));
      if (slow.own.count() == 0) std::this_thread::sleep_for(until_begun);
      slow.has_ended.store(true);
      return;
    }
    const auto deadline = std::chrono::steady_clock::now() + kPatience;
    while (!slow.has_begun.load() && std::chrono::steady_clock::now() < deadline) std::this_thread::yield();
    std::this_thread::sleep_for(slow.own);
  }
};

TEST(emulator_copy_engines_are_through_before_their_caller_goes_on) {
  CopyEngines& engines = kept(1);
  Slow slow;
  engines.run(2, &Slow::run, &slow, true);
  CHECK(slow.has_begun.load());
  CHECK(slow.has_ended.load());
}

// Whether an engine helps soon after it was 3 ms late, which is worth a rest of 30 ms unless it saved its
// caller more; nothing when the machine took that time away.
std::optional<bool> helps_after_it_was_late(std::chrono::milliseconds saved) {
  CopyEngines& engines = kept(1);
  Slow slow{saved};
  engines.run(2, &Slow::run, &slow, true);
  const auto ended = std::chrono::steady_clock::now();
  const uint64_t before = engines.parts_of_helpers();
  // Until it helps: the caller may well be through with such copies before an engine is awake.
  const auto helps = [&] { return engines.parts_of_helpers() != before; };
  while (!helps() && std::chrono::steady_clock::now() < ended + std::chrono::milliseconds(15)) {
    Parts parts(8);
    engines.run(parts.done.size(), &Parts::count, &parts, true);
  }
  if (std::chrono::steady_clock::now() > ended + std::chrono::milliseconds(20)) return std::nullopt;
  return helps();
}

// A few times: a caller that loses its own core meanwhile does not see that its engine was late.
TEST(emulator_copy_engines_that_lost_their_core_are_not_asked_for_a_while) {
  int rested = 0;
  int helped = 0;
  const auto deadline = std::chrono::steady_clock::now() + kPatience;
  while (rested + helped < 5 && std::chrono::steady_clock::now() < deadline) {
    const std::optional<bool> helps = helps_after_it_was_late(std::chrono::milliseconds(0));
    if (helps) ++(*helps ? helped : rested);
  }
  CHECK(rested > helped);
}

// One time is enough: it would never be asked so soon.
TEST(emulator_copy_engines_that_were_late_by_less_than_they_saved_are_asked_again) {
  bool helps = false;
  for (int tries = 0; tries < 100 && !helps; ++tries)
    helps = helps_after_it_was_late(std::chrono::milliseconds(10)).value_or(false);
  CHECK(helps);
}

TEST(emulator_copy_engines_serve_several_callers_each_with_its_own_work) {
  CopyEngines& engines = kept(3);
  std::vector<std::thread> callers;
  std::atomic<int> wrong{0};
  for (int caller = 0; caller < 3; ++caller) {
    callers.emplace_back([&] {
      for (int round = 0; round < 3000; ++round) {
        Parts parts(8);
        engines.run(parts.done.size(), &Parts::count, &parts, true);
        for (const auto& done : parts.done) wrong += done.load() != 1;
      }
    });
  }
  for (auto& caller : callers) caller.join();
  CHECK_EQUAL(wrong.load(), 0);
}

}  // namespace
}  // namespace emu
