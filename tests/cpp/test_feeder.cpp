// Who hands work to a feeding thread, and finds its lane there.
#include <chrono>
#include <condition_variable>
#include <functional>
#include <future>
#include <mutex>
#include <thread>
#include <vector>

#include "acl/stream.h"
#include "check.h"
#include "link/feeder.h"
#include "transport/mapped/mapped.h"

namespace datadist {
namespace {

constexpr size_t kMostLanes = 5;

struct Pool {
  acl::ThreadDevice device{0};
  WordPool words{[](size_t bytes) { return mapped::allocate(0, bytes); }};
  StreamBudget budget;
};

// What has boarded, in order, and the lanes that it found there.
struct Seen {
  std::mutex mutex;
  std::condition_variable changed;
  std::vector<int> numbers;
  std::vector<std::shared_ptr<Lane>> lanes;
  std::thread::id thread;

  void wait_for(size_t count) {
    std::unique_lock lock(mutex);
    CHECK(changed.wait_for(lock, std::chrono::seconds(30), [&] { return numbers.size() >= count; }));
  }
};

class Passenger : public Boarding {
 public:
  Passenger(int number, Feeder& feeder, Seen& seen) : number_(number), feeder_(feeder), seen_(seen) {}
  void board() override {
    auto lane = feeder_.take_lane(kMostLanes, Feeder::Budget::kBound, Feeder::Words::kReserved);
    std::lock_guard lock(seen_.mutex);
    seen_.numbers.push_back(number_);
    if (lane != nullptr) seen_.lanes.push_back(std::move(lane));
    seen_.thread = std::this_thread::get_id();
    seen_.changed.notify_all();
  }

 private:
  const int number_;
  Feeder& feeder_;
  Seen& seen_;
};

TEST(feeder_finds_a_lane_for_each_of_those_that_board_together) {
  Pool pool;
  Seen seen;
  Feeder feeder(0, acl::OnFailure::kStop, &pool.words, nullptr, &pool.budget, {});
  for (int i = 0; i < 7; ++i) feeder.leave(std::make_shared<Passenger>(i, feeder, seen));
  feeder.tick();  // wakes the thread where nobody else does
  seen.wait_for(7);
  CHECK((seen.numbers == std::vector<int>{0, 1, 2, 3, 4, 5, 6}));
  CHECK_EQUAL(seen.lanes.size(), kMostLanes);
  CHECK(seen.thread != std::this_thread::get_id());
}

TEST(feeder_gives_nobody_a_lane_that_was_dropped) {
  Pool pool;
  Feeder feeder(0, acl::OnFailure::kStop, &pool.words, nullptr, &pool.budget, {});
  const auto lane = feeder.take_lane(kMostLanes, Feeder::Budget::kBound);
  feeder.give_back_lane(lane);
  CHECK(feeder.take_lane(kMostLanes, Feeder::Budget::kBound) == lane);
  feeder.give_back_lane(lane);
  feeder.drop_lane(lane);
  const auto next = feeder.take_lane(kMostLanes, Feeder::Budget::kBound);
  CHECK(next != nullptr && next != lane);
}

// Its stream never gets to its end.
class Endless : public Program {
 public:
  Endless(Word never, std::function<void()> at_end) : never_(never), at_end_(std::move(at_end)) {}
  bool next(Step* step) override {
    *step = {Step::kWait, never_.address, nullptr, 1};
    return true;
  }
  void ended(uint64_t, int64_t, const std::string&) override { at_end_(); }

 private:
  const Word never_;
  const std::function<void()> at_end_;
};

TEST(feeder_that_stops_takes_along_who_comes_meanwhile) {
  Pool pool;
  Seen seen;
  Feeder feeder(0, acl::OnFailure::kStop, &pool.words, nullptr, &pool.budget, {});
  std::promise<void> ends, has_come;
  const auto lane = feeder.take_lane(kMostLanes, Feeder::Budget::kBound);
  feeder.submit(lane, std::make_unique<Endless>(pool.words.take(), [&] {
                  ends.set_value();
                  has_come.get_future().wait();
                }));
  feeder.request_stop();
  ends.get_future().wait();  // the thread has looked at who boards for the last time but one
  feeder.leave(std::make_shared<Passenger>(0, feeder, seen));
  has_come.set_value();
  seen.wait_for(1);
  feeder.stop();
  CHECK(seen.lanes.empty());
}

TEST(feeder_that_has_stopped_tells_who_comes_late_at_once) {
  Pool pool;
  Seen seen;
  Feeder feeder(0, acl::OnFailure::kStop, &pool.words, nullptr, &pool.budget, {});
  feeder.stop();
  feeder.leave(std::make_shared<Passenger>(0, feeder, seen));
  seen.wait_for(1);
  CHECK(seen.lanes.empty());
  CHECK(seen.thread == std::this_thread::get_id());
}

}  // namespace
}  // namespace datadist
