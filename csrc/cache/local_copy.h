// Copies inside one process, queued on a stream of the caller's: between device memory of its device and host
// memory, either way, and within each.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "acl/acl_rt.h"
#include "plan/plan.h"

namespace datadist {

struct LocalCopy {
  char* dst;
  char* src;
  size_t bytes;
  bool to_device;
  bool from_device;
};

// Where the copies of one op lead. All are checked when they are added, and ranges that overlap in part are
// refused. Tensors with as many blocks share a plan, which is written out when it is queued.
class LocalCopies {
 public:
  explicit LocalCopies(const char* asked) : asked_(asked) {}

  void add(const at::Tensor& dst, int64_t dst_offset, const at::Tensor& src, int64_t src_offset,
           int64_t bytes);
  // Which blocks `add_blocks` means; the lists stay until its last call.
  void begin_blocks(const BlockLists& lists) { lists_ = lists; }
  void add_blocks(const at::Tensor& dst, const at::Tensor& src);

  bool empty() const { return copies_.empty() && pairs_.empty(); }
  // Until the call returns a code that is not 0, which is the answer then.
  template <typename Call>
  aclError for_each(Call call) const {
    for (const LocalCopy& copy : copies_) {
      if (const aclError code = call(copy); code != 0) return code;
    }
    for (const Pair& pair : pairs_) {
      const auto stride = static_cast<int64_t>(pair.block.bytes);
      for (const Run& run : plans_[pair.plan].runs) {
        LocalCopy copy = pair.block;
        copy.dst += run.dst * stride;
        copy.src += run.src * stride;
        copy.bytes = static_cast<size_t>(run.blocks * stride);
        if (copy.dst == copy.src) continue;
        if (const aclError code = call(copy); code != 0) return code;
      }
    }
    return 0;
  }

 private:
  struct Plan {
    int64_t dst_count;
    int64_t src_count;
    std::vector<Run> runs;
    bool overlaps;  // a run, with itself, where both caches are one
  };
  struct Pair {
    LocalCopy block;  // block 0 to block 0
    size_t plan;
  };

  size_t plan_of(int64_t dst_count, int64_t src_count);
  void require_apart(const char* dst, const char* src, int64_t bytes) const;

  const char* const asked_;
  BlockLists lists_;
  std::vector<LocalCopy> copies_;
  std::vector<Plan> plans_;
  std::vector<Pair> pairs_;
};

// Bytes of one block, or batch entry, of a tensor: of one index of dimension 0.
int64_t stride_of(const at::Tensor& tensor, const char* name, const char* asked);

// Queues them; the first code that is not 0. From host memory that is not page-locked, and to it, a copy
// waits for the stream first, as the runtime does.
aclError queue_local_copies(const LocalCopies& copies, aclrtStream stream);
// Within host memory, at once.
void make_local_copies(const LocalCopies& copies);

}  // namespace datadist
