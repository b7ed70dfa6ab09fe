// Caches of this instance and of peers, and the tables of handles.
#include "cache/cache.h"
#include "check.h"
#include "error.h"
#include "link/handles.h"

namespace datadist {
namespace {

char memory[4096];

int64_t add(LocalCaches& caches, size_t at, int64_t blocks = 4, bool is_blocks = true) {
  std::vector<Place> places{{memory + at, Reach::kDevice}, {memory + at + 512, Reach::kDevice}};
  return caches.add({blocks, is_blocks, {64, 64}}, places, {0, 0}, {});
}

std::vector<char*> tensors(size_t at) { return {memory + at, memory + at + 512}; }

TEST(registry_finds_a_cache_by_its_tensors_in_order) {
  LocalCaches caches;
  const int64_t id = add(caches, 0);

  CHECK_EQUAL(caches.find(tensors(0), true, 4, "asked")->id, id);
  CHECK_THROWS(Error, "not a registered cache",
               caches.find(std::vector{memory + 512, memory + 0}, true, 4, "asked"));
  CHECK_THROWS(Error, "empty list", caches.find({}, true, 4, "asked"));
  CHECK_THROWS(Error, "is a blocks cache, a contiguous cache", caches.find(tensors(0), false, 4, "asked"));
}

TEST(registry_takes_the_last_of_the_caches_that_share_memory) {
  LocalCaches caches;
  add(caches, 0);
  const int64_t other_shape = add(caches, 0, 8);
  const int64_t last = add(caches, 0);

  CHECK_EQUAL(caches.find(tensors(0), true, 4, "asked")->id, last);
  CHECK_EQUAL(caches.find(tensors(0), true, 8, "asked")->id, other_shape);
}

TEST(registry_lets_peers_read_and_write_what_a_cache_offers_them) {
  LocalCaches caches;
  const auto add_one = [&](size_t at, bool receives, bool is_offered) {
    return caches.add({4, true, {64}}, {{memory + at, Reach::kDevice}}, {0}, {}, receives, is_offered);
  };
  add_one(0, true, true);
  add_one(256, false, true);
  add_one(512, true, false);
  const auto may = [&](size_t at, bool is_written) {
    return caches.reach_for_peers(memory + at, 256, is_written).has_value();
  };
  CHECK(may(0, false));
  CHECK(may(0, true));
  CHECK(may(256, false));
  CHECK(!may(256, true));
  CHECK(!may(512, false));
  CHECK(!may(512, true));
  CHECK(caches.reach_of(memory + 512, 256));

  const int64_t another = add_one(512, true, true);  // of the same memory
  add_one(512, true, false);
  CHECK(may(512, true));
  caches.release(another);
  CHECK(!may(512, true));
}

TEST(registry_does_not_find_what_was_withdrawn_and_keeps_what_is_pinned) {
  LocalCaches caches;
  const int64_t id = add(caches, 0);
  auto pinned = caches.find_id(id, "asked");
  caches.withdraw(id);

  CHECK_THROWS(Error, "no cache", caches.find_id(id, "asked"));
  CHECK_THROWS(Error, "not a registered cache", caches.find(tensors(0), true, 4, "asked"));
  CHECK_THROWS(Error, "still touched by 1 transfers", caches.release(id));
  pinned.reset();
  caches.release(id);
  CHECK_THROWS(Error, "no cache", caches.get(id, "asked"));
  caches.release(id);
}

TEST(registry_lets_storage_go_when_it_is_released) {
  LocalCaches caches;
  auto storage = std::make_shared<int>(1);
  std::weak_ptr<int> watched = storage;
  const int64_t id = caches.add({1, true, {1}}, {{memory, Reach::kDevice}}, {0}, {std::move(storage)});

  CHECK(!watched.expired());
  caches.release(id);
  CHECK(watched.expired());
}

std::shared_ptr<RemoteCache> remote(int64_t id, std::optional<uint64_t> model, bool is_blocks = true) {
  auto cache = std::make_shared<RemoteCache>();
  cache->id = id;
  cache->model_id = model;
  cache->geometry = {4, is_blocks, {64}};
  cache->exports.resize(1);
  return cache;
}

TEST(registry_of_a_peer_finds_the_last_cache_of_a_model) {
  RemoteCaches caches;
  CHECK_THROWS(Error, "it announced none", caches.find_model(0, "asked", "cluster 2"));
  caches.add(remote(1, 0));
  caches.add(remote(2, 0));
  caches.add(remote(3, 0, false));

  CHECK_EQUAL(caches.find_model(0, "asked", "cluster 2")->id, 2);
  CHECK_EQUAL(caches.find_id(3, "asked", "cluster 2")->id, 3);
  CHECK_THROWS(Error, "cluster 2 has no blocks cache with model_id 7",
               caches.find_model(7, "asked", "cluster 2"));
  CHECK_THROWS(Error, "it announced cache_id 1, 2, 3", caches.find_id(9, "asked", "cluster 2"));
}

TEST(registry_of_a_peer_keeps_a_dropped_cache_until_nobody_uses_it) {
  RemoteCaches caches;
  caches.add(remote(1, 0));
  auto pinned = caches.find_id(1, "asked", "peer");
  std::weak_ptr<void> watched = pinned;
  CHECK(caches.is_in_use(1));

  caches.drop(1);

  CHECK_THROWS(Error, "cache_id 1", caches.find_id(1, "asked", "peer"));
  CHECK(caches.is_in_use(1));
  pinned.reset();
  CHECK(!caches.is_in_use(1));
}

TEST(registry_checks_layers) {
  const Geometry geometry{4, true, {64, 64, 64, 64}};

  CHECK_EQUAL(resolve_layers(geometry, {1, -1, 2}, "local", "asked").layers, 1);
  CHECK_THROWS(Error, "expected 1 to 4", resolve_layers(geometry, {0, 1, 0}, "local", "asked"));
  CHECK_THROWS(Error, "does not divide the 4", resolve_layers(geometry, {0, 1, 3}, "local", "asked"));
  CHECK_THROWS(Error, "are not in the local cache", resolve_layers(geometry, {2, 1, 2}, "local", "asked"));
  CHECK_THROWS(Error, "are not in the local cache", resolve_layers(geometry, {-1, 1, 2}, "local", "asked"));
  CHECK_THROWS(Error, "are not in", resolve_layers(geometry, {1, INT64_MAX, 2}, "local", "asked"));
  CHECK_THROWS(Error, "are not in", resolve_layers(geometry, {INT64_MAX, INT64_MAX, 1}, "local", "asked"));
  CHECK_THROWS(Error, "are not in", resolve_layers(geometry, {INT64_MIN, -1, 1}, "local", "asked"));
}

TEST(registry_of_handles_never_follows_a_stale_one) {
  HandleTable<int> table("thing");
  const int64_t first = table.add(std::make_shared<int>(1));
  table.remove(first);
  const int64_t second = table.add(std::make_shared<int>(2));

  CHECK(first != second);
  CHECK_THROWS(Error, "closed or freed", table.get(first, "asked"));
  CHECK_THROWS(Error, "there is no thing 99", table.get(99, "asked"));
  CHECK(table.find(-1) == nullptr);
  CHECK(table.remove(first) == nullptr);
}

TEST(registry_of_links_uses_an_index_again_under_another_generation) {
  CompactTable<int> table;
  std::vector<int64_t> handles;
  for (int i = 0; i < 1024; ++i) handles.push_back(table.add(std::make_shared<int>(i)));
  CHECK_THROWS(Error, "1024 links", table.add(std::make_shared<int>(0)));
  table.release(handles[7]);
  CHECK_EQUAL(*table.find(handles[7]), 7);

  const int64_t next = table.add(std::make_shared<int>(5000));

  CHECK_EQUAL(next % 1024, handles[7] % 1024);
  CHECK(table.find(handles[7]) == nullptr);
  CHECK_EQUAL(*table.find(next), 5000);
  CHECK(next < 1 << 20);
  for (const int64_t odd : {int64_t{-1}, int64_t{0}, INT64_MAX, INT64_MIN}) {
    const auto found = table.find(odd);
    CHECK(found == nullptr);
  }
}

TEST(registry_of_links_forgets_those_that_ended_long_ago) {
  CompactTable<int> table;
  std::vector<std::weak_ptr<int>> ended;
  std::vector<int64_t> handles;
  const int64_t alive = table.add(std::make_shared<int>(-1));
  for (int i = 0; i < 100; ++i) {
    auto object = std::make_shared<int>(i);
    ended.push_back(object);
    handles.push_back(table.add(std::move(object)));
    table.release(handles.back());
    table.release(handles.back());
  }
  table.add(std::make_shared<int>(-2));

  const auto is_kept = [](const auto& one) { return !one.expired(); };
  CHECK_EQUAL(std::count_if(ended.begin(), ended.end(), is_kept), 32);
  CHECK(std::all_of(ended.end() - 32, ended.end(), is_kept));
  CHECK(table.find(handles[0]) == nullptr);
  CHECK_EQUAL(*table.find(handles[99]), 99);
  CHECK_EQUAL(*table.find(alive), -1);
}

}  // namespace
}  // namespace datadist
