#include "plan/plan.h"

#include <algorithm>
#include <array>
#include <bit>
#include <optional>
#include <utility>

#include "messages/messages.h"

namespace datadist {
namespace {

struct BlockPair {
  int64_t src;
  int64_t dst;
};

constexpr size_t kFewPairs = 16;                   // up to here, comparing is quicker than counting
constexpr int64_t kMostMarked = int64_t{1} << 20;  // blocks of a cache: a thread keeps 9 MiB for them
constexpr size_t kBlocksPerPair = 1024;            // above, looking for marks takes longer than sorting
constexpr size_t kMostDigits = size_t{1} << 11;    // their counters stay in the fastest cache

// Kept per thread: a plan in steady state allocates nothing.
struct Scratch {
  std::vector<BlockPair> pairs;
  std::vector<BlockPair> other;
  std::array<uint32_t, kMostDigits> first;  // of each digit, where it goes
  std::vector<uint64_t> is_src;             // a bit of each block; all 0 between two calls
  std::vector<uint8_t> is_dst;              // likewise, a byte of each: nobody looks for those that are set
  std::vector<int64_t> dst_of;
  std::vector<Run> runs;  // room for those of the longest lists yet
};

Scratch& scratch() {
  thread_local Scratch kept;
  return kept;
}

[[noreturn, gnu::noinline, gnu::cold]] void refuse_outside(const char* asked, const char* list, size_t i,
                                                           int64_t id, int64_t count) {
  refuse(
      Message::block_outside,
      {{"asked", asked}, {"list", list}, {"at", i}, {"value", id}, {"cache", "the cache"}, {"count", count}});
}

// Stable, so that sorting by dst and then by src sorts by (src, dst); std::stable_sort would allocate.
// `count`: all keys are below it.
template <typename Key>
void sort_by(Key key, int64_t count, Scratch& scratch) {
  auto& pairs = scratch.pairs;
  if (pairs.size() <= kFewPairs) {
    for (size_t i = 1; i < pairs.size(); ++i) {
      const BlockPair pair = pairs[i];
      size_t at = i;
      for (; at > 0 && key(pair) < key(pairs[at - 1]); --at) pairs[at] = pairs[at - 1];
      pairs[at] = pair;
    }
    return;
  }
  scratch.other.resize(pairs.size());
  // A round costs about as much for each four digits as for a pair: a short list takes small digits, and more
  // rounds.
  const size_t most_digits = std::min(4 * pairs.size(), kMostDigits);
  const int key_bits = std::bit_width(static_cast<uint64_t>(count - 1));
  int rounds = 1;
  const auto digit_bits = [&] { return (key_bits + rounds - 1) / rounds; };
  while (size_t{1} << digit_bits() > most_digits) ++rounds;
  const int bits = digit_bits();
  const size_t digits = size_t{1} << bits;
  for (int shift = 0; shift < key_bits; shift += bits) {
    const auto digit = [&](const BlockPair& pair) {
      return static_cast<size_t>(key(pair) >> shift) & (digits - 1);
    };
    std::fill_n(scratch.first.begin(), digits, 0);
    for (const BlockPair& pair : pairs) ++scratch.first[digit(pair)];
    uint32_t before = 0;
    for (size_t i = 0; i < digits; ++i) before += std::exchange(scratch.first[i], before);
    for (const BlockPair& pair : pairs) scratch.other[scratch.first[digit(pair)]++] = pair;
    pairs.swap(scratch.other);
  }
}

bool is_in(int64_t id, int64_t count) { return static_cast<uint64_t>(id) < static_cast<uint64_t>(count); }

// Made of pairs that come sorted by source. There is room for a run of each.
class Runs {
 public:
  explicit Runs(Run* room) : room_(room) {}
  void add(int64_t src, int64_t dst) {
    if (src == next_src_ && dst == next_dst_)
      ++room_[count_ - 1].blocks;
    else
      room_[count_++] = {src, dst, 1};
    next_src_ = src + 1;
    next_dst_ = dst + 1;
  }
  size_t count() const { return count_; }

 private:
  Run* const room_;
  size_t count_ = 0;
  int64_t next_src_ = -1;  // what the last run would go on with; no pair has it
  int64_t next_dst_ = -1;
};

// Where they are listed in the order in which they are copied; nullopt where not, or where an id is no
// block's.
std::optional<size_t> runs_in_order(const BlockLists& lists, Scratch& scratch) {
  Runs runs(scratch.runs.data());
  int64_t least_src = 0;
  int64_t least_dst = 0;
  for (size_t i = 0; i < lists.src_length; ++i) {
    const int64_t src = lists.src[i];
    const int64_t dst = lists.dst[i];
    if (src >= least_src && dst >= least_dst && src < lists.src_count && dst < lists.dst_count) {
      runs.add(src, dst);
      least_src = src;
      least_dst = dst + 1;
    } else if (src != -1 || dst != -1) {
      return std::nullopt;
    }
  }
  return runs.count();
}

template <typename T>
T* at_least(size_t count, std::vector<T>* room) {
  if (room->size() < count) room->resize(count);
  return room->data();
}

// Where no block is listed twice on either side: each has a bit and a place, and nothing is sorted. nullopt,
// and nothing is left behind, where one is, where an id is no block's, or where there are too few pairs for
// so many blocks.
std::optional<size_t> runs_of_distinct(const BlockLists& lists, Scratch& scratch) {
  const auto [srcs, length, dsts, dst_length, src_count, dst_count] = lists;
  const int64_t most_blocks = std::max(src_count, dst_count);
  if (length <= kFewPairs || most_blocks > kMostMarked ||
      static_cast<size_t>(most_blocks) / kBlocksPerPair > length)
    return std::nullopt;
  uint64_t* const is_src = at_least(static_cast<size_t>(src_count + 63) / 64, &scratch.is_src);
  uint8_t* const is_dst = at_least(dst_count, &scratch.is_dst);
  int64_t* const dst_of = at_least(src_count, &scratch.dst_of);
  uint64_t wrong = 0;
  size_t pairs = 0;
  size_t i = 0;
  for (; i < length; ++i) {
    const int64_t src = srcs[i];
    const int64_t dst = dsts[i];
    if (is_in(src, src_count) && is_in(dst, dst_count)) {
      uint64_t& word = is_src[static_cast<size_t>(src) / 64];
      const uint64_t bit = uint64_t{1} << (static_cast<size_t>(src) % 64);
      wrong |= (word & bit) | is_dst[dst];
      word |= bit;
      is_dst[dst] = 1;
      dst_of[src] = dst;
      ++pairs;
    } else if (src != -1 || dst != -1) {
      wrong = 1;
      break;
    }
  }
  if (wrong != 0) {
    while (i-- > 0) {
      if (srcs[i] == -1) continue;
      is_src[static_cast<size_t>(srcs[i]) / 64] = 0;
      is_dst[dsts[i]] = 0;
    }
    return std::nullopt;
  }
  Runs runs(scratch.runs.data());
  for (size_t word = 0; pairs > 0; ++word) {
    for (uint64_t bits = std::exchange(is_src[word], 0); bits != 0; bits &= bits - 1, --pairs) {
      const auto src = static_cast<int64_t>(word * 64) + std::countr_zero(bits);
      const int64_t dst = dst_of[src];
      is_dst[dst] = 0;
      runs.add(src, dst);
    }
  }
  return runs.count();
}

void sort_and_require_distinct_destinations(const BlockLists& lists, const char* asked, Scratch& scratch) {
  sort_by([](const BlockPair& pair) { return pair.dst; }, lists.dst_count, scratch);
  const auto twice =
      std::adjacent_find(scratch.pairs.begin(), scratch.pairs.end(),
                         [](const BlockPair& a, const BlockPair& b) { return a.dst == b.dst; });
  if (twice != scratch.pairs.end()) {
    refuse(Message::block_is_listed_twice, {{"asked", asked}, {"list", "dst_blocks"}, {"value", twice->dst}});
  }
  sort_by([](const BlockPair& pair) { return pair.src; }, lists.src_count, scratch);
}

size_t runs_of_any(const BlockLists& lists, const char* asked, Scratch& scratch) {
  scratch.pairs.resize(lists.src_length);
  size_t length = 0;
  for (size_t i = 0; i < lists.src_length; ++i) {
    const BlockPair pair{lists.src[i], lists.dst[i]};
    if (pair.src == -1 && pair.dst == -1) continue;
    if (!is_in(pair.src, lists.src_count)) refuse_outside(asked, "src_blocks", i, pair.src, lists.src_count);
    if (!is_in(pair.dst, lists.dst_count)) refuse_outside(asked, "dst_blocks", i, pair.dst, lists.dst_count);
    scratch.pairs[length++] = pair;
  }
  scratch.pairs.resize(length);
  sort_and_require_distinct_destinations(lists, asked, scratch);
  Runs runs(scratch.runs.data());
  for (const auto& [src, dst] : scratch.pairs) runs.add(src, dst);
  return runs.count();
}

}  // namespace

std::span<const Run> plan_runs(const BlockLists& lists, const char* asked) {
  if (lists.src_length != lists.dst_length) {
    refuse(Message::lists_of_unequal_length,
           {{"asked", asked}, {"src", lists.src_length}, {"dst", lists.dst_length}});
  }
  Scratch& kept = scratch();
  at_least(lists.src_length, &kept.runs);
  auto count = runs_in_order(lists, kept);
  if (!count) count = runs_of_distinct(lists, kept);
  if (!count) count = runs_of_any(lists, asked, kept);
  return {kept.runs.data(), *count};
}

}  // namespace datadist
