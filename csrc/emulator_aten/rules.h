// Which ops torch_npu keeps, and what becomes of the others.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>

namespace emu_aten {

enum class Rule {
  kLeave,     // torch_npu's or PyTorch's own kernel works: allocation, views, storage, compositions
  kImplicit,  // torch_npu overrides what PyTorch composes, also for autograd
  kExplicit,  // the same, below autograd: factories, clone
  kBoxed,     // the CPU's kernel, over the same bytes
  kRefuse,    // only a device can run it
  kSpecial,   // see special.h
};

Rule rule_for(const c10::OperatorHandle& op);

}  // namespace emu_aten
