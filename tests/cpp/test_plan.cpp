// plan/: lists of blocks become copies that move exactly the pairs' bytes.
#include "check.h"
#include "error.h"
#include "plan_oracle.h"

namespace datadist {
namespace {

std::vector<Run> runs_of(std::vector<int64_t> src, std::vector<int64_t> dst, int64_t src_count = 100,
                         int64_t dst_count = 100) {
  const auto runs =
      plan_runs({src.data(), src.size(), dst.data(), dst.size(), src_count, dst_count}, "asked");
  return {runs.begin(), runs.end()};
}

// A list that is refused, or sorted another way, leaves nothing behind for the next one of the thread.
TEST(plan_of_distinct_blocks_does_not_know_the_list_before) {
  constexpr int64_t kPairs = 20;
  std::vector<int64_t> repeated, twice, falling, rising;
  for (int64_t i = 0; i < kPairs; ++i) {
    repeated.push_back(i / 2);
    twice.push_back(50 - i / 2);
    falling.push_back(99 - i);
    rising.push_back(60 + i);
  }
  CHECK_EQUAL(runs_of(repeated, falling).size(), size_t{kPairs});
  CHECK_THROWS(Error, "twice", runs_of(rising, twice));

  const auto runs = runs_of(falling, rising);

  CHECK_EQUAL(runs.size(), size_t{kPairs});
  for (size_t i = 0; i < runs.size(); ++i) {
    CHECK_EQUAL(runs[i].src, int64_t(80 + i));
    CHECK_EQUAL(runs[i].dst, int64_t(79 - i));
  }
}

TEST(plan_merges_neighbours_on_both_sides) {
  const auto runs = runs_of({4, 2, 3, 9}, {7, 5, 6, 1});

  CHECK_EQUAL(runs.size(), 2u);
  CHECK_EQUAL(runs[0].src, 2);
  CHECK_EQUAL(runs[0].dst, 5);
  CHECK_EQUAL(runs[0].blocks, 3);
  CHECK_EQUAL(runs[1].src, 9);
}

TEST(plan_skips_padding) { CHECK_EQUAL(runs_of({-1, 3, -1}, {-1, 4, -1}).size(), 1u); }

TEST(plan_refuses_what_is_wrong_and_names_it) {
  CHECK_THROWS(Error, "src_blocks[1] = 100 is outside the cache, which has 100", runs_of({0, 100}, {0, 1}));
  CHECK_THROWS(Error, "dst_blocks[0] = -7", runs_of({0}, {-7}));
  CHECK_THROWS(Error, "src_blocks[0] = -1", runs_of({-1}, {3}));
  CHECK_THROWS(Error, "dst_blocks lists block 5 twice", runs_of({1, 2, 3}, {5, 4, 5}));
  CHECK_THROWS(Error, "2 entries and dst_blocks has 1", runs_of({1, 2}, {5}));
  CHECK_THROWS(Error, "src_blocks[0]", runs_of({INT64_MIN}, {0}));
  CHECK_THROWS(Error, "src_blocks[0]", runs_of({INT64_MAX}, {0}));
}

TEST(plan_a_source_may_serve_several_destinations) { CHECK_EQUAL(runs_of({3, 3}, {1, 2}).size(), 2u); }

TEST(plan_keeps_nothing_of_a_list_that_it_refused) {
  CHECK_THROWS(Error, "twice", runs_of({1, 2}, {5, 5}));

  CHECK_EQUAL(runs_of({1}, {5}).size(), 1u);
}

TEST(plan_random_cases_move_exactly_the_bytes_of_their_pairs) {
  for (uint64_t seed = 0; seed < 3000; ++seed) plan_oracle::try_case(seed);
}

}  // namespace
}  // namespace datadist
