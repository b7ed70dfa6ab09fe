// Block lists -> copies. Pure arithmetic: no device call and no torch in here.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace datadist {

// Neighbouring blocks that are neighbours on both sides travel as one copy. Offsets and length in blocks.
struct Run {
  int64_t src;
  int64_t dst;
  int64_t blocks;
};

struct BlockPair {
  int64_t src;
  int64_t dst;
};

// Pairs up two lists of block ids; a pair of -1 is padding and skipped. `src_count` and `dst_count` are the
// numbers of blocks that the two caches have. Throws Error(LLM_PARAM_INVALID) naming the first bad entry:
// lists of unequal length, padding on one side only, an id outside its cache, a destination listed twice.
std::vector<BlockPair> pair_blocks(const int64_t* src, size_t src_length, const int64_t* dst,
                                   size_t dst_length, int64_t src_count, int64_t dst_count,
                                   const char* asked);

// Sorts by source and merges pairs that grow by one on both sides. n log n in blocks.
std::vector<Run> merge_runs(std::vector<BlockPair> pairs);

}  // namespace datadist
