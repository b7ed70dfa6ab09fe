// What the hot paths take from the heap in steady state: nothing, or no more for more blocks.
#include <algorithm>
#include <array>
#include <cstdlib>
#include <functional>
#include <new>
#include <numeric>
#include <thread>

#include "check.h"
#include "link/kept.h"
#include "link/page.h"
#include "plan/copies.h"
#include "side.h"

namespace {

thread_local bool is_counting = false;
thread_local size_t counted = 0;

void* take(size_t bytes) {
  if (is_counting) ++counted;
  void* const memory = std::malloc(bytes == 0 ? 1 : bytes);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

}  // namespace

void* operator new(size_t bytes) { return take(bytes); }
void* operator new[](size_t bytes) { return take(bytes); }
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete[](void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }
void operator delete[](void* memory, size_t) noexcept { std::free(memory); }

namespace datadist {
namespace {

// How often this thread took memory in the call.
template <typename Call>
size_t allocations_of(Call&& call) {
  counted = 0;
  is_counting = true;
  call();
  is_counting = false;
  return counted;
}

TEST(allocations_are_counted) {
  CHECK_EQUAL(allocations_of([] {}), size_t{0});
  CHECK_EQUAL(allocations_of([] { std::vector<int>(3).swap(*std::make_unique<std::vector<int>>(5)); }),
              size_t{3});
}

TEST(allocations_of_a_plan_are_none_in_steady_state) {
  constexpr int64_t kBlocks = 100'000;
  std::vector<int64_t> src(kBlocks), dst(kBlocks);
  std::iota(src.begin(), src.end(), 0);
  for (int64_t i = 0; i < kBlocks; ++i) dst[i] = (i * 7919) % kBlocks;
  std::vector<TensorPair> tensors;
  for (uintptr_t t = 0; t < 4; ++t) {
    tensors.push_back({reinterpret_cast<char*>((t + 1) << 40), reinterpret_cast<char*>((t + 9) << 40), 4096,
                       4096, 4096, 0, 0});
  }
  size_t copies = 0;
  const auto plan = [&] {
    const auto runs = plan_runs({src.data(), src.size(), dst.data(), dst.size(), kBlocks, kBlocks}, "plan");
    Copies all;
    all.begin(tensors.data(), tensors.size(), runs.data(), runs.size(), {});
    copies = 0;
    for (Rows rows; all.next(&rows);) ++copies;
  };
  plan();

  CHECK_EQUAL(allocations_of(plan), size_t{0});
  CHECK(copies > 0);
}

// docs/performance.md, "What a link holds".
TEST(allocations_of_links_are_as_documented) {
  DATADIST_ACL(acl::set_device(0));
  constexpr size_t kDocumented = 268 << 10;
  CHECK_EQUAL(kPageBytes, kDocumented);
  CHECK(sizeof(Mail) <= (6 << 10) + 64);
  size_t bytes = 0;
  PageArena arena([&](size_t asked) {
    bytes += asked;
    return mapped::allocate(0, asked);
  });
  const size_t before = bytes;
  std::vector<Page> pages;
  for (int link = 0; link < 16; ++link) pages.push_back(arena.take());

  CHECK_EQUAL(bytes - before, 16 * kDocumented);
  pages.push_back(arena.take());
  CHECK_EQUAL(bytes, 32 * kDocumented);

  for (const Page& page : pages) arena.give_back(page);
  for (int link = 0; link < 17; ++link) arena.take();  // what is given back is taken again
  CHECK(bytes <= 32 * kDocumented);
}

struct Linked {
  Linked() : a(1, 0), b(2, 1) {
    const Introduction of_a = a.introduce({2, "cluster 2", 1, getpid(), start_time_of(getpid()), true});
    const Introduction of_b = b.introduce({1, "cluster 1", 0, getpid(), start_time_of(getpid()), true});
    to_b = of_a.link;
    a.meet(to_b, of_b);
    b.meet(of_b.link, of_a);
  }
  Side a;
  Side b;
  int64_t to_b = 0;
};

TEST(allocations_of_layer_ops_are_none) {
  Linked linked;
  const auto sends = linked.a.make_binding();
  const auto waits = linked.b.make_binding();
  Forward sender(0), receiver(1);
  const auto queue = [](int device, Forward& forward, const OpSteps& steps) {
    DATADIST_ACL(acl::set_device(device));
    forward.queue(steps);
  };
  for (int forward = 0; forward < 3; ++forward) {
    std::vector<std::shared_ptr<Transfer>> tasks;
    std::vector<int64_t> tickets;
    for (int64_t request = 0; request < 4; ++request) {  // a batch
      tasks.push_back(linked.a.prepare(linked.to_b, {request}, {request}));
      tickets.push_back(tasks.back()->ticket());
    }
    waits->bind({}, tickets, {}, std::chrono::seconds(20));
    sends->bind(tasks, {}, {}, std::chrono::seconds(20));

    size_t allocations = 0;
    OpSteps steps;
    for (int layer = 0; layer < kSideLayers; ++layer) {
      allocations += allocations_of([&] { steps = sends->push_layer(layer, sender.stream()); });
      CHECK_EQUAL(steps.starts.size(), size_t{4});
      queue(0, sender, steps);
      allocations += allocations_of([&] { steps = waits->wait_layer(layer, receiver.stream()); });
      CHECK_EQUAL(steps.awaited.size(), size_t{4});
      queue(1, receiver, steps);
    }
    allocations += allocations_of([&] { steps = sends->finish(sender.stream()); });
    CHECK_EQUAL(steps.passed.size(), size_t{4});
    queue(0, sender, steps);

    CHECK_EQUAL(allocations, size_t{0});
    CHECK_EQUAL(sender.status(), int64_t{kSuccess});
    DATADIST_ACL(acl::set_device(1));
    CHECK_EQUAL(receiver.status(), int64_t{kSuccess});
  }
  sends->close();
  waits->close();
}

TEST(allocations_of_a_whole_transfer_are_none_in_steady_state) {
  Linked linked;
  Forward caller(0);
  const std::vector<int64_t> src{1, 5, 9}, dst{4, 2, 8};
  constexpr size_t kTransfers = 32;
  const auto engine = Engine::of(0);
  const auto push_all = [&] {
    size_t found = 0;
    for (size_t i = 0; i < kTransfers; ++i) {
      Gate start;
      found += allocations_of([&] {
        const auto transfer = linked.a.begin(Direction::kPush, linked.to_b, src, dst, 0, false);
        start = transfer->start_gate_for(0);
      });
      start.feeder->wake();
      DATADIST_ACL(acl::queue_write(start.word, 1, caller.stream().raw));
    }
    CHECK_EQUAL(caller.status(), int64_t{kSuccess});
    const auto deadline = Clock::now() + std::chrono::seconds(20);
    while (!engine->transfers().empty()) CHECK(engine->wait_for_tick(deadline));
    return found;
  };
  // Until as many were under way at a time as ever will be; then a queue of programs takes memory for many at
  // a time.
  size_t found = push_all();
  for (int round = 0; round < 20 && found > 2; ++round) found = push_all();

  CHECK_EQUAL(std::min(found, size_t{2}), found);
}

struct HeldWork {
  std::shared_ptr<int> held;
  std::array<char, 400> more{};
};

TEST(allocations_of_what_is_kept_are_none_once_some_was_destroyed) {
  using Works = Kept<HeldWork>;
  constexpr size_t kUnderWay = 5;
  const auto held = std::make_shared<int>(7);
  std::array<std::function<int()>, kUnderWay> queue;
  const auto queue_all = [&] {
    for (auto& function : queue) {
      auto* const work = Works::make({held});
      const std::function<int()> asked = [work] {
        const int found = *work->held;
        Works::destroy(work);
        return found;
      };
      function = asked;  // torch_npu copies it
    }
  };
  const auto run_all = [&] {
    for (auto& function : queue) CHECK_EQUAL(function(), 7);
  };
  queue_all();
  CHECK_EQUAL(held.use_count(), long{1 + kUnderWay});
  std::thread(run_all).join();
  CHECK_EQUAL(held.use_count(), long{1});  // it goes with its handler

  for (int round = 0; round < 3; ++round) {
    CHECK_EQUAL(allocations_of(queue_all), size_t{0});
    std::thread(run_all).join();
  }
}

TEST(allocations_of_what_is_kept_serve_one_at_a_time_between_threads) {
  using Works = Kept<std::shared_ptr<std::atomic<int>>>;
  constexpr int kRounds = 2000;
  std::atomic<int> mixed{0};
  const auto call_ops = [&] {
    for (int round = 0; round < kRounds; ++round) {
      const auto mine = std::make_shared<std::atomic<int>>(round);
      auto* const one = Works::make(mine);
      auto* const other = Works::make(mine);
      if (one == other || *one != mine || *other != mine) ++mixed;
      Works::destroy(one);
      Works::destroy(other);
      if (mine.use_count() != 1) ++mixed;
    }
  };
  std::vector<std::thread> threads;
  for (int i = 0; i < 3; ++i) threads.emplace_back(call_ops);
  for (std::thread& thread : threads) thread.join();

  CHECK_EQUAL(mixed.load(), 0);
}

TEST(allocations_of_a_task_do_not_grow_with_its_blocks) {
  Linked linked;
  const auto prepare = [&](int64_t blocks) {
    std::vector<int64_t> src, dst;
    for (int64_t i = 0; i < blocks; ++i) {
      src.push_back(2 * i);  // none beside another
      dst.push_back(2 * i + 1);
    }
    std::shared_ptr<Transfer> task;
    const size_t found = allocations_of([&] { task = linked.a.prepare(linked.to_b, src, dst); });
    task->discard("the test");
    CHECK(task->wait().first != kSuccess);
    return found;
  };
  // Of several: what a thread of the link still holds of the previous task is allocated again.
  const auto least = [&](int64_t blocks) {
    size_t found = prepare(blocks);
    for (int i = 0; i < 10; ++i) found = std::min(found, prepare(blocks));
    return found;
  };

  CHECK_EQUAL(least(12), least(1));
}

}  // namespace
}  // namespace datadist
