#include "plan/plan.h"

#include <algorithm>
#include <array>
#include <bit>
#include <utility>

#include "messages/messages.h"

namespace datadist {
namespace {

struct BlockPair {
  int64_t src;
  int64_t dst;
};

constexpr size_t kFewPairs = 16;                   // up to here, comparing is quicker than counting
constexpr int64_t kMostMarked = int64_t{1} << 20;  // blocks of a cache: a thread keeps 8 MiB for them
constexpr size_t kBlocksPerPair = 1024;            // above, looking for marks takes longer than sorting
constexpr size_t kMostDigits = size_t{1} << 11;    // their counters stay in the fastest cache

// Kept per thread: a plan in steady state allocates nothing.
struct Scratch {
  std::vector<BlockPair> pairs;
  std::vector<BlockPair> other;
  std::array<uint32_t, kMostDigits> first;  // of each digit, where it goes
  std::vector<uint64_t> is_src;             // a bit of each block; all 0 between two calls
  std::vector<uint64_t> is_dst;
  std::vector<int64_t> dst_of;
  std::vector<Run> runs;
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

bool grows(const std::vector<BlockPair>& pairs) {
  return std::adjacent_find(pairs.begin(), pairs.end(), [](const BlockPair& a, const BlockPair& b) {
           return a.src > b.src || a.dst >= b.dst;
         }) == pairs.end();
}

// By source, where no block is listed twice on either side: each has a bit and a place. False, and nothing is
// done, where one is, or where there are too few pairs for so many blocks.
bool sort_distinct(const BlockLists& lists, Scratch& scratch) {
  auto& pairs = scratch.pairs;
  auto& is_src = scratch.is_src;
  auto& is_dst = scratch.is_dst;
  auto& dst_of = scratch.dst_of;
  const int64_t most_blocks = std::max(lists.src_count, lists.dst_count);
  if (pairs.size() <= kFewPairs || most_blocks > kMostMarked ||
      static_cast<size_t>(most_blocks) / kBlocksPerPair > pairs.size())
    return false;
  const auto words = [](int64_t blocks) { return static_cast<size_t>(blocks + 63) / 64; };
  if (is_src.size() < words(lists.src_count)) is_src.resize(words(lists.src_count));
  if (is_dst.size() < words(lists.dst_count)) is_dst.resize(words(lists.dst_count));
  if (dst_of.size() < static_cast<size_t>(lists.src_count)) dst_of.resize(lists.src_count);
  uint64_t twice = 0;
  const auto set = [&twice](std::vector<uint64_t>& bits, int64_t id) {
    uint64_t& word = bits[static_cast<size_t>(id) / 64];
    const uint64_t bit = uint64_t{1} << (id % 64);
    twice |= word & bit;
    word |= bit;
  };
  for (const auto& [src, dst] : pairs) {
    set(is_src, src);
    set(is_dst, dst);
    dst_of[src] = dst;
  }
  for (const auto& [src, dst] : pairs) is_dst[static_cast<size_t>(dst) / 64] = 0;
  if (twice != 0) {
    for (const auto& [src, dst] : pairs) is_src[static_cast<size_t>(src) / 64] = 0;
    return false;
  }
  size_t at = 0;
  for (size_t word = 0; at < pairs.size(); ++word) {
    for (uint64_t bits = std::exchange(is_src[word], 0); bits != 0; bits &= bits - 1) {
      const auto src = static_cast<int64_t>(word * 64) + std::countr_zero(bits);
      pairs[at++] = {src, dst_of[src]};
    }
  }
  return true;
}

void sort_and_require_distinct_destinations(const BlockLists& lists, const char* asked, Scratch& scratch) {
  if (grows(scratch.pairs) || sort_distinct(lists, scratch)) return;
  sort_by([](const BlockPair& pair) { return pair.dst; }, lists.dst_count, scratch);
  const auto twice =
      std::adjacent_find(scratch.pairs.begin(), scratch.pairs.end(),
                         [](const BlockPair& a, const BlockPair& b) { return a.dst == b.dst; });
  if (twice != scratch.pairs.end()) {
    refuse(Message::block_is_listed_twice, {{"asked", asked}, {"list", "dst_blocks"}, {"value", twice->dst}});
  }
  sort_by([](const BlockPair& pair) { return pair.src; }, lists.src_count, scratch);
}

}  // namespace

void plan_runs(const BlockLists& lists, const char* asked, std::vector<Run>* runs) {
  if (lists.src_length != lists.dst_length) {
    refuse(Message::lists_of_unequal_length,
           {{"asked", asked}, {"src", lists.src_length}, {"dst", lists.dst_length}});
  }
  Scratch& kept = scratch();
  kept.pairs.resize(lists.src_length);
  size_t length = 0;
  const auto is_in = [](int64_t id, int64_t count) {
    return static_cast<uint64_t>(id) < static_cast<uint64_t>(count);
  };
  for (size_t i = 0; i < lists.src_length; ++i) {
    const BlockPair pair{lists.src[i], lists.dst[i]};
    if (pair.src == -1 && pair.dst == -1) continue;
    if (!is_in(pair.src, lists.src_count)) refuse_outside(asked, "src_blocks", i, pair.src, lists.src_count);
    if (!is_in(pair.dst, lists.dst_count)) refuse_outside(asked, "dst_blocks", i, pair.dst, lists.dst_count);
    kept.pairs[length++] = pair;
  }
  kept.pairs.resize(length);
  sort_and_require_distinct_destinations(lists, asked, kept);
  kept.runs.clear();
  Run run{0, 0, 0};
  for (const BlockPair& pair : kept.pairs) {
    if (pair.src == run.src + run.blocks && pair.dst == run.dst + run.blocks && run.blocks > 0) {
      ++run.blocks;
      continue;
    }
    if (run.blocks > 0) kept.runs.push_back(run);
    run = {pair.src, pair.dst, 1};
  }
  if (run.blocks > 0) kept.runs.push_back(run);
  runs->insert(runs->end(), kept.runs.begin(), kept.runs.end());  // allocates once at most
}

}  // namespace datadist
