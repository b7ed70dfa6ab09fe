// A span on a profiler's timeline, inside the op's own, with what the schema does not say: what moves, and to
// whom.
#pragma once

#include <ATen/record_function.h>

#include <optional>

namespace datadist {

inline bool is_profiled() { return at::RecordFunction(at::RecordScope::USER_SCOPE).isActive(); }

class OpSpan {
 public:
  // `describe` is asked while somebody records only. `may_be`: false where that was asked before, and nobody
  // was.
  template <typename Describe>
  explicit OpSpan(Describe describe, bool may_be = true) {
    if (!may_be) return;
    span_.emplace(at::RecordScope::USER_SCOPE);
    if (span_->isActive()) span_->before(describe());
  }

 private:
  std::optional<at::RecordFunction> span_;
};

}  // namespace datadist
