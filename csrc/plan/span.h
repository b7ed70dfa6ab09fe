// Where the bytes of a transfer lie in a pair of tensors. Pure arithmetic, like plan.h.
#pragma once

#include <cstdint>

#include "plan/plan.h"

namespace datadist {

// What is asked for: blocks to blocks, one batch entry to one, or one entry cut into slices of a block each.
enum class Layout : uint8_t { kBlocks, kEntry, kEntryToBlocks };

struct Shape {
  Layout layout = Layout::kBlocks;
  int64_t src_entry = 0;  // of the contiguous cache or caches
  int64_t dst_entry = 0;
  int64_t size_bytes = 0;  // kEntry: of each tensor, from the start of the entry; 0: the whole local entry
};

// Offsets in the two tensors.
struct Span {
  int64_t src;
  int64_t dst;
  int64_t bytes;
};

// `src_stride`, `dst_stride`: bytes of a block or an entry in the two tensors.
inline Span span_of(const Shape& shape, const Run& run, int64_t src_stride, int64_t dst_stride,
                    int64_t local_stride) {
  switch (shape.layout) {
    case Layout::kEntry:
      return {shape.src_entry * src_stride, shape.dst_entry * dst_stride,
              shape.size_bytes > 0 ? shape.size_bytes : local_stride};
    case Layout::kEntryToBlocks: {
      const int64_t from = run.src * dst_stride;  // a slice is as long as a block, but for the entry's last
      const int64_t left = src_stride - from;
      const int64_t wanted = run.blocks * dst_stride;
      return {shape.src_entry * src_stride + from, run.dst * dst_stride, wanted < left ? wanted : left};
    }
    case Layout::kBlocks:
      break;
  }
  return {run.src * src_stride, run.dst * dst_stride, run.blocks * src_stride};
}

}  // namespace datadist
