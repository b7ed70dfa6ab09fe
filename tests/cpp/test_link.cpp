// Two instances of one process, on two devices: every kind of transfer, and how links end.
#include <functional>
#include <string>
#include <thread>

#include "check.h"
#include "side.h"

namespace datadist {
namespace {

[[maybe_unused]] const bool stops_engines = [] {
  check::at_end().push_back(&Engine::stop_all);
  return true;
}();

struct Pair {
  Pair() : a(1, 0), b(2, 1) {
    const Introduction of_a = a.introduce({2, "cluster 2", 1, getpid(), start_time_of(getpid()), true});
    const Introduction of_b = b.introduce({1, "cluster 1", 0, getpid(), start_time_of(getpid()), true});
    to_b = of_a.link;
    to_a = of_b.link;
    a.meet(to_b, of_b);
    b.meet(to_a, of_a);
  }

  Side a;
  Side b;
  int64_t to_b = 0;
  int64_t to_a = 0;
};

TEST(link_pushes_and_pulls_blocks) {
  Pair pair;
  pair.a.fill(3, 33);
  pair.a.fill(4, 44);

  CHECK_EQUAL(pair.a.move(Direction::kPush, pair.to_b, {3, 4}, {8, 1}).first, int64_t{kSuccess});
  CHECK_EQUAL(pair.b.move(Direction::kPull, pair.to_a, {4}, {20}).first, int64_t{kSuccess});

  CHECK(pair.b.holds(8, 33) && pair.b.holds(1, 44) && pair.b.holds(20, 44));
  CHECK(pair.b.holds(0, 0) && pair.b.holds(2, 0) && pair.b.holds(19, 0) && pair.b.holds(21, 0));
}

TEST(link_sends_by_layers_to_whoever_waits_for_the_ticket) {
  Pair pair;
  pair.a.fill(0, 5);
  const auto task = pair.a.prepare(pair.to_b, {0}, {6});
  const auto sends = pair.a.make_binding();
  const auto waits = pair.b.make_binding();
  int64_t waited = -1;
  std::thread receiver([&] { waited = pair.b.wait_layers(*waits, task->ticket()); });

  const int64_t sent = pair.a.send_layers(*sends, task);
  receiver.join();

  CHECK_EQUAL(sent, int64_t{kSuccess});
  CHECK_EQUAL(waited, int64_t{kSuccess});
  CHECK(pair.b.holds(6, 5));
  sends->close();
  waits->close();
}

TEST(link_serves_a_publication_once) {
  Pair pair;
  pair.a.fill(7, 70);
  const auto publication = pair.a.publish(pair.to_b);

  const auto pulled = pair.b.move(Direction::kPull, pair.to_a, {7}, {9}, publication->ticket());

  CHECK_EQUAL(pulled.second, "");
  CHECK(pair.b.holds(9, 70));
  CHECK_EQUAL(publication->wait().first, int64_t{kSuccess});
  CHECK_THROWS(Error, "", pair.b.move(Direction::kPull, pair.to_a, {7}, {9}, publication->ticket()));
}

TEST(link_fails_what_is_prepared_when_it_is_closed) {
  Pair pair;
  const auto task = pair.a.prepare(pair.to_b, {0}, {6});

  pair.a.instance().close_link(pair.to_b);

  CHECK_EQUAL(task->wait().first, int64_t{kNotYetLink});
  CHECK_THROWS(Error, "the link was closed here", pair.a.move(Direction::kPush, pair.to_b, {0}, {0}));
}

TEST(link_that_cannot_be_opened_leaves_no_handle_behind) {
  Side side(1, 0);
  Engine::of(0)->stop();

  for (int attempt = 0; attempt < 3; ++attempt)
    CHECK_THROWS(Error, "is shut down", side.instance().open_link({2, "cluster 2", 1, getpid(), 0, true}));

  for (int64_t handle = 1; handle < 8; ++handle) CHECK(links().find(handle) == nullptr);
}

TEST(link_refuses_numbers_that_no_cache_has) {
  Pair pair;

  CHECK_THROWS(Error, "dst_blocks[0] = 24", pair.a.move(Direction::kPush, pair.to_b, {0}, {24}));
  CHECK_THROWS(Error, "src_blocks[0] = -5", pair.a.move(Direction::kPush, pair.to_b, {-5}, {2}));

  CHECK_EQUAL(pair.a.move(Direction::kPush, pair.to_b, {0}, {0}).first, int64_t{kSuccess});
}

// Where the bytes of a request would go, or why it is refused.
std::string ends_of(Side& side, int64_t link, const std::function<void(TransferRequest&)>& change) {
  try {
    const TransferPlan plan = side.plan(link, change);
    const auto range = [](const LayerRange& layers) {
      return join(layers.first_layer, "+", layers.layers, "x", layers.tensors_per_layer, " ");
    };
    return join(plan.direction == Direction::kPush ? "to " : "from ", plan.local->id, " ",
                range(plan.local_layers), plan.remote->id, " ", range(plan.remote_layers),
                plan.needs.comparison);
  } catch (const Error& error) {
    return error.what();
  }
}

TEST(link_plans_a_request_as_if_it_were_the_first) {
  Pair pair;
  Instance& instance = pair.a.instance();
  const auto link = instance.link(pair.to_b, "look");
  auto other = std::make_shared<RemoteCache>();
  other->id = 2;
  other->model_id = 1;
  other->geometry = {kSideBlocks, true, std::vector<int64_t>(kSideTensors, kSideBlockBytes)};
  other->exports.resize(kSideTensors, {"", 0, 0, MemoryKind::kDevice});
  link->remote_caches().add(other);
  static std::vector<char*> fewer;
  const std::vector<std::function<void(TransferRequest&)>> requests{
      [](TransferRequest&) {},
      [](TransferRequest& request) { request.direction = Direction::kPull; },
      [](TransferRequest& request) { request.model_id = 1; },
      [](TransferRequest& request) { request.model_id = 2; },
      [](TransferRequest& request) { request.cache_id = 2; },
      [](TransferRequest& request) { request.src_layer = 1, request.num_layers = 1; },
      [](TransferRequest& request) { request.dst_layer = 1, request.num_layers = 1; },
      [](TransferRequest& request) { request.num_layers = 1; },
      [](TransferRequest& request) { request.src_layer = 1; },
      [](TransferRequest& request) { request.dst_layer = 1; },
      [](TransferRequest& request) { request.dimension_0 = 1; },
      [](TransferRequest& request) { request.tensors_per_layer = 1; },
      [](TransferRequest& request) { request.size_bytes = 0; },
      [](TransferRequest& request) { request.layout = Layout::kEntry; },
      [](TransferRequest& request) {
        fewer.assign(request.cache.begin() + 1, request.cache.end());
        request.cache = fewer;
      },
  };
  const auto forget = [&] {
    instance.caches().withdraw(instance.caches().add({1, true, {1}}, {{nullptr}}, {0}, {}));
  };
  std::vector<std::string> first;
  for (const auto& request : requests) {
    forget();
    first.push_back(ends_of(pair.a, pair.to_b, request));
  }
  for (const auto& before : requests) {
    for (size_t i = 0; i < requests.size(); ++i) {
      ends_of(pair.a, pair.to_b, before);
      CHECK_EQUAL(ends_of(pair.a, pair.to_b, requests[i]), first[i]);
      CHECK_EQUAL(ends_of(pair.a, pair.to_b, requests[i]), first[i]);
    }
  }
}

TEST(link_forgets_where_the_last_request_went_when_that_is_withdrawn) {
  Pair pair;
  const auto link = pair.a.instance().link(pair.to_b, "look");
  const auto ends = [&] { return ends_of(pair.a, pair.to_b, [](TransferRequest&) {}); };
  const std::string before = ends();
  CHECK_EQUAL(ends(), before);

  const auto again = std::make_shared<RemoteCache>(*link->remote_caches().find_id(1, "look", "cluster 2"));
  again->id = 7;
  link->remote_caches().add(again);
  CHECK(ends().find(" 7 ") != std::string::npos);
  link->remote_caches().drop(7);
  CHECK_EQUAL(ends(), before);
  link->remote_caches().drop(1);
  CHECK(ends().find("model_id") != std::string::npos);

  pair.a.instance().caches().withdraw(1);
  CHECK(ends().find("registered") != std::string::npos);
}

TEST(link_serves_threads_that_push_and_pull_at_the_same_time) {
  Pair pair;
  std::vector<std::thread> threads;
  std::atomic<int> bad{0};
  for (int64_t thread = 0; thread < 4; ++thread) {
    threads.emplace_back([&, thread] {
      for (int64_t i = 0; i < 25; ++i) {
        const int64_t block = 5 * thread + i % 5;
        const auto seed = static_cast<uint64_t>(1000 * thread + i + 1);
        pair.a.fill(block, seed);
        if (pair.a.move(Direction::kPush, pair.to_b, {block}, {block}).first != kSuccess) ++bad;
        if (!pair.b.holds(block, seed)) ++bad;
        if (pair.a.move(Direction::kPull, pair.to_b, {block}, {block}).first != kSuccess) ++bad;
        if (!pair.a.holds(block, seed)) ++bad;
      }
    });
  }
  for (auto& thread : threads) thread.join();

  CHECK_EQUAL(bad.load(), 0);
}

TEST(link_that_is_closed_under_transfers_ends_each_of_them) {
  Pair pair;
  std::vector<std::thread> threads;
  std::atomic<bool> is_open{true};
  std::atomic<int> odd{0};
  for (int64_t thread = 0; thread < 3; ++thread) {
    threads.emplace_back([&, thread] {
      try {
        while (is_open) {
          const auto [code, why] = pair.a.move(Direction::kPush, pair.to_b, {thread}, {thread});
          if (code != kSuccess && code != kNotYetLink) ++odd;
        }
      } catch (const Error& error) {
        if (error.code() != kNotYetLink) ++odd;
      }
    });
  }
  while (!pair.a.move(Direction::kPush, pair.to_b, {10}, {10}).second.empty()) {
  }

  pair.b.instance().close_link(pair.to_a);
  pair.a.instance().close_link(pair.to_b);
  is_open = false;
  for (auto& thread : threads) thread.join();

  CHECK_EQUAL(odd.load(), 0);
}

}  // namespace
}  // namespace datadist
