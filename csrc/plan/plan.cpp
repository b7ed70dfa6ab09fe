#include "plan/plan.h"

#include <algorithm>

#include "error.h"

namespace datadist {
namespace {

void require_in_range(const char* asked, const char* list, size_t i, int64_t id, int64_t count) {
  require(id >= 0 && id < count, kParamInvalid, asked, ": ", list, "[", i, "] = ", id,
          " is outside the cache, which has ", count, " blocks. Nothing was sent; the link is still usable.");
}

void require_distinct_destinations(std::vector<int64_t> dst, const char* asked) {
  std::sort(dst.begin(), dst.end());
  const auto twice = std::adjacent_find(dst.begin(), dst.end());
  require(twice == dst.end(), kParamInvalid, asked, ": dst_blocks lists block ",
          twice == dst.end() ? 0 : *twice,
          " twice, and which of its sources would win is not defined. Nothing was sent; the link is still "
          "usable.");
}

}  // namespace

std::vector<BlockPair> pair_blocks(const int64_t* src, size_t src_length, const int64_t* dst,
                                   size_t dst_length, int64_t src_count, int64_t dst_count,
                                   const char* asked) {
  require(src_length == dst_length, kParamInvalid, asked, ": src_blocks has ", src_length,
          " entries and dst_blocks has ", dst_length,
          "; they go in pairs. Nothing was sent; the link is still usable.");
  std::vector<BlockPair> pairs;
  std::vector<int64_t> destinations;
  pairs.reserve(src_length);
  destinations.reserve(src_length);
  for (size_t i = 0; i < src_length; ++i) {
    if (src[i] == -1 && dst[i] == -1) continue;
    require_in_range(asked, "src_blocks", i, src[i], src_count);
    require_in_range(asked, "dst_blocks", i, dst[i], dst_count);
    pairs.push_back({src[i], dst[i]});
    destinations.push_back(dst[i]);
  }
  require_distinct_destinations(std::move(destinations), asked);
  return pairs;
}

std::vector<Run> merge_runs(std::vector<BlockPair> pairs) {
  std::sort(pairs.begin(), pairs.end(), [](const BlockPair& a, const BlockPair& b) {
    return a.src != b.src ? a.src < b.src : a.dst < b.dst;
  });
  std::vector<Run> runs;
  for (const BlockPair& pair : pairs) {
    if (!runs.empty() && pair.src == runs.back().src + runs.back().blocks &&
        pair.dst == runs.back().dst + runs.back().blocks) {
      ++runs.back().blocks;
    } else {
      runs.push_back({pair.src, pair.dst, 1});
    }
  }
  return runs;
}

}  // namespace datadist
