// A span on a profiler's timeline, inside the op's own, with what the schema does not say: what moves, and to
// whom.
#pragma once

#include <ATen/record_function.h>

namespace datadist {

inline bool is_profiled() { return at::RecordFunction(at::RecordScope::USER_SCOPE).isActive(); }

class OpSpan {
 public:
  // `describe` is asked while somebody records only.
  template <typename Describe>
  explicit OpSpan(Describe describe) : span_(at::RecordScope::USER_SCOPE) {
    if (span_.isActive()) span_.before(describe());
  }

 private:
  at::RecordFunction span_;
};

}  // namespace datadist
