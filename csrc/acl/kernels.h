// Kernels of CANN's operator library that the core launches itself, on streams of its own contexts: rows of a
// matrix by a list of indices, out of it and into it. One kernel moves what would be thousands of copies.
//
// Not by torch's ops: those run on torch_npu's streams, where a failing task ends the process, and a stream
// that waits for a peer would hold up torch.npu.synchronize().
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "acl/acl_rt.h"

struct aclTensor;
struct aclOpExecutor;

namespace datadist::acl {

struct RowMove {
  char* matrix = nullptr;  // `rows` of `row_bytes`
  int64_t rows = 0;
  size_t row_bytes = 0;
  const int64_t* ids = nullptr;  // of device memory; each below `rows`: no kernel looks
  int64_t count = 0;
  char* packed = nullptr;  // `count` rows
};

// Prepared, and then launched once or thrown away.
class RowKernel {
 public:
  enum class Kind : uint8_t { kGather, kScatter };  // packed[i] = matrix[ids[i]], matrix[ids[i]] = packed[i]

  // "", or why there are no such kernels here: which library or function is missing.
  static const std::string& why_missing();

  ~RowKernel();
  RowKernel() = default;
  RowKernel(const RowKernel&) = delete;
  RowKernel& operator=(const RowKernel&) = delete;

  aclError prepare(Kind kind, const RowMove& move);
  uint64_t workspace_bytes() const { return workspace_bytes_; }
  // `workspace`: device memory that stays until the kernel ran.
  aclError launch(void* workspace, aclrtStream stream);
  const char* name() const;

 private:
  void destroy_tensors();

  Kind kind_ = Kind::kGather;
  aclTensor* matrix_ = nullptr;
  aclTensor* ids_ = nullptr;
  aclTensor* packed_ = nullptr;
  aclOpExecutor* executor_ = nullptr;
  uint64_t workspace_bytes_ = 0;
};

}  // namespace datadist::acl
