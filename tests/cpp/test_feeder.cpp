// Who hands work to a feeding thread, and finds its lane there.
#include <atomic>
#include <thread>
#include <vector>

#include "acl/stream.h"
#include "check.h"
#include "link/feeder.h"
#include "transport/mapped/mapped.h"

namespace datadist {
namespace {

constexpr size_t kManyLanes = 9;

struct Pool {
  acl::ThreadDevice device{0};
  WordPool words{[](size_t bytes) { return mapped::allocate(0, bytes); }};
  StreamBudget budget;
};

// Takes all the lanes that it can get, and keeps them.
class Greedy : public Boarding {
 public:
  explicit Greedy(Feeder& feeder) : feeder_(feeder) {}
  void board() override {
    while (auto lane = feeder_.take_lane(kManyLanes, Feeder::Budget::kBound, Feeder::Words::kStocked))
      lanes_.push_back(std::move(lane));
    thread_ = std::this_thread::get_id();
    has_boarded_.store(true, std::memory_order_release);
    has_boarded_.notify_all();
  }
  size_t lanes() {
    has_boarded_.wait(false, std::memory_order_acquire);
    return lanes_.size();
  }
  std::thread::id thread() const { return thread_; }

 private:
  Feeder& feeder_;
  std::vector<std::shared_ptr<Lane>> lanes_;
  std::thread::id thread_;
  std::atomic<bool> has_boarded_{false};
};

TEST(feeder_makes_lanes_on_its_thread_of_what_callers_put_in_stock) {
  Pool pool;
  Feeder feeder(0, acl::OnFailure::kStop, &pool.words, nullptr, &pool.budget, {});
  for (int i = 0; i < 2; ++i) {  // each call fills the stock again
    const auto greedy = std::make_shared<Greedy>(feeder);
    feeder.leave(greedy);
    feeder.wake();
    CHECK_EQUAL(greedy->lanes(), size_t{2});  // a link's main lane and one more
    CHECK(greedy->thread() != std::this_thread::get_id());
  }
  feeder.stop();

  const auto late = std::make_shared<Greedy>(feeder);
  feeder.leave(late);  // is told so at once, here
  CHECK_EQUAL(late->lanes(), size_t{0});
  CHECK(late->thread() == std::this_thread::get_id());
}

TEST(feeder_boards_in_the_order_of_the_calls_also_when_only_the_watchdog_wakes_it) {
  struct Numbered : Boarding {
    Numbered(int number, std::vector<int>* seen, std::atomic<int>* count)
        : number(number), seen(seen), count(count) {}
    void board() override {
      seen->push_back(number);
      count->fetch_add(1);
      count->notify_all();
    }
    const int number;
    std::vector<int>* const seen;
    std::atomic<int>* const count;
  };
  Pool pool;
  Feeder feeder(0, acl::OnFailure::kStop, &pool.words, nullptr, &pool.budget, {});
  std::vector<int> seen;
  std::atomic<int> count{0};
  for (int i = 0; i < 3; ++i) feeder.leave(std::make_shared<Numbered>(i, &seen, &count));
  feeder.tick();
  for (int now = 0; (now = count.load()) < 3;) count.wait(now);
  CHECK((seen == std::vector<int>{0, 1, 2}));
}

}  // namespace
}  // namespace datadist
