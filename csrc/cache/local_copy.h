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

// Where the copies of one op lead; each is checked by `add`, and ranges that overlap in part are refused.
class LocalCopies {
 public:
  explicit LocalCopies(const char* asked) : asked_(asked) {}

  void add(const at::Tensor& dst, int64_t dst_offset, const at::Tensor& src, int64_t src_offset,
           int64_t bytes);
  std::vector<LocalCopy> take() { return std::move(copies_); }

 private:
  const char* const asked_;
  std::vector<LocalCopy> copies_;
};

// Bytes of one block, or batch entry, of a tensor: of one index of dimension 0.
int64_t stride_of(const at::Tensor& tensor, const char* name, const char* asked);

// Queues them; the first code that is not 0. From host memory that is not page-locked, and to it, a copy
// waits for the stream first, as the runtime does.
aclError queue_local_copies(const std::vector<LocalCopy>& copies, aclrtStream stream);
// Within host memory, at once.
void make_local_copies(const std::vector<LocalCopy>& copies);

}  // namespace datadist
