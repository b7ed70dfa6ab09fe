// Copies that several threads share: each part is done once, and the copy not before the last of them.
#include <sys/types.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <fstream>
#include <iterator>
#include <optional>
#include <string>
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

bool is_asleep(pid_t thread) {
  std::ifstream stat("/proc/self/task/" + std::to_string(thread) + "/stat");
  const std::string fields((std::istreambuf_iterator<char>(stat)), std::istreambuf_iterator<char>());
  const size_t name_ends = fields.rfind(") ");
  return name_ends != std::string::npos && fields[name_ends + 2] == 'S';
}

// Two parts, side by side. The caller, when it is through with its own, waits for the engine: for `late`,
// where its own takes a while, and that much longer than the engine saved it, where its own takes nothing.
struct Slow {
  explicit Slow(std::chrono::milliseconds own) : own(own) {}
  const std::chrono::milliseconds own;  // that the caller's part takes
  const std::chrono::milliseconds late{3};
  const std::chrono::steady_clock::time_point asked = std::chrono::steady_clock::now();
  const pid_t caller = gettid();
  mutable std::atomic<bool> has_begun{false};
  mutable std::atomic<bool> has_ended{false};
  mutable std::chrono::steady_clock::time_point ended{};

  static void run(const void* work, size_t) {
    const auto& slow = *static_cast<const Slow*>(work);
    if (gettid() == slow.caller)
      slow.run_for_caller();
    else
      slow.run_for_engine();
  }

  void run_for_caller() const {
    const auto deadline = std::chrono::steady_clock::now() + kPatience;
    while (!has_begun.load() && std::chrono::steady_clock::now() < deadline) std::this_thread::yield();
    std::this_thread::sleep_for(own);
  }

  void run_for_engine() const {
    has_begun.store(true);
    if (own.count() > 0) {
      std::this_thread::sleep_for(own + late);
    } else {
      // A caller that loses its own core sees neither when its part ended nor that the engine was late: it
      // sleeps because it waits.
      const auto deadline = std::chrono::steady_clock::now() + kPatience;
      while (!is_asleep(caller) && std::chrono::steady_clock::now() < deadline) std::this_thread::yield();
      std::this_thread::sleep_for(std::chrono::steady_clock::now() - asked + late);
    }
    ended = std::chrono::steady_clock::now();
    has_ended.store(true);
  }
};

TEST(emulator_copy_engines_are_through_before_their_caller_goes_on) {
  CopyEngines& engines = kept(1);
  Slow slow(std::chrono::milliseconds(0));
  engines.run(2, &Slow::run, &slow, true);
  CHECK(slow.has_begun.load());
  CHECK(slow.has_ended.load());
}

// Whether the engine helps within 30 ms from when it was 3 ms late, which is worth a rest of that long unless
// it saved its caller more; nothing when this thread had no time to look.
std::optional<bool> helps_after_it_was_late(std::chrono::milliseconds own) {
  CopyEngines& engines = kept(1);
  Slow slow(own);
  engines.run(2, &Slow::run, &slow, true);
  const uint64_t before = engines.parts_of_helpers();
  // Many times: the caller may well be through with such copies before an engine is awake.
  bool helps = false;
  do {
    Parts parts(8);
    engines.run(parts.done.size(), &Parts::count, &parts, true);
    helps = engines.parts_of_helpers() != before;
  } while (!helps && std::chrono::steady_clock::now() < slow.ended + std::chrono::milliseconds(20));
  if (std::chrono::steady_clock::now() > slow.ended + std::chrono::milliseconds(30)) return std::nullopt;
  return helps;
}

TEST(emulator_copy_engines_that_lost_their_core_are_not_asked_for_a_while) {
  int rested = 0;
  const auto deadline = std::chrono::steady_clock::now() + kPatience;
  while (rested < 5 && std::chrono::steady_clock::now() < deadline) {
    const std::optional<bool> helps = helps_after_it_was_late(std::chrono::milliseconds(0));
    CHECK(!helps.value_or(false));
    if (helps) ++rested;
  }
  CHECK_EQUAL(rested, 5);
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
