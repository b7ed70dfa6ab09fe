// What a schema says about an op: what it writes, what it returns, whether its shapes depend on data.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>

#include <optional>
#include <vector>

namespace emu_aten {

struct Signature {
  explicit Signature(const c10::OperatorHandle& op);

  size_t arguments = 0;
  std::vector<size_t> written;                         // argument positions
  std::vector<size_t> outs;                            // of those, the keyword-only ones: `out=`
  std::vector<std::optional<size_t>> returns_written;  // per return: the argument it is, or a fresh value
  std::optional<size_t> generator;                     // argument position
  bool is_view = false;                                // returns an alias, or changes what its argument views
  bool has_fresh_returns = false;
  bool resizes_outs = false;  // makes its `out=` larger on the way to the result
  bool needs_data = false;    // shapes or plain values come out of the tensors' contents
};

// The `out=` form of an op whose fresh returns are all tensors, if it has a CPU kernel of its own.
std::optional<c10::OperatorHandle> find_out_variant(const c10::OperatorHandle& op);

}  // namespace emu_aten
