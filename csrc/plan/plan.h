// Block lists -> runs of neighbouring blocks. Pure arithmetic: no device call and no torch in here.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace datadist {

// Neighbouring blocks that are neighbours on both sides travel as one copy. Offsets and length in blocks.
struct Run {
  int64_t src;
  int64_t dst;
  int64_t blocks;
};

// Two lists of block ids that go in pairs; a pair of -1 is padding and skipped. `src_count` and `dst_count`
// are the numbers of blocks that the two caches have.
struct BlockLists {
  const int64_t* src = nullptr;
  size_t src_length = 0;
  const int64_t* dst = nullptr;
  size_t dst_length = 0;
  int64_t src_count = 0;
  int64_t dst_count = 0;
};

// The maximal runs, sorted by source, until the calling thread's next call. Throws Error(LLM_PARAM_INVALID)
// naming the first bad entry: lists of unequal length, padding on one side only, an id outside its cache, a
// destination listed twice. Linear in blocks, in memory that the thread keeps.
std::span<const Run> plan_runs(const BlockLists& lists, const char* asked);

}  // namespace datadist
