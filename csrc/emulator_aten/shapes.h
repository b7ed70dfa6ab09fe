// What an op will return, known before it runs: sizes, strides and dtypes without touching a byte.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>
#include <c10/util/SmallVector.h>

#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "emulator_aten/signature.h"

namespace emu_aten {

struct TensorShape {
  bool defined = true;
  c10::ScalarType dtype = c10::ScalarType::Undefined;
  c10::SmallVector<int64_t, 5> sizes;
  c10::SmallVector<int64_t, 5> strides;
};

struct Resized {
  size_t argument;
  TensorShape shape;
};

struct Shapes {
  std::vector<std::vector<TensorShape>> returns;  // per fresh return; one entry, or one per element of a list
  std::vector<Resized> resized;                   // `out=` arguments that the op resizes
};

using Arguments = c10::ArrayRef<c10::IValue>;

// A rule that replaces the meta kernel of an op. Null result: the op must run before its shapes are known.
using ShapeRule = std::shared_ptr<const Shapes> (*)(Arguments);

// The op's shapes for arguments like these. Found by the op's meta kernel the first time (tens of
// microseconds, more where it is written in Python), remembered after: a model calls an op with the same
// shapes over and over.
class ShapeCache {
 public:
  // Null when only running the op can tell.
  std::shared_ptr<const Shapes> get(const c10::OperatorHandle& op, const Signature& signature,
                                    Arguments arguments, ShapeRule rule);

 private:
  std::mutex mutex_;
  std::unordered_map<std::string, std::shared_ptr<const Shapes>> known_;
};

}  // namespace emu_aten
