// Overrides torch_npu's kernels, once, when the library is loaded.
#include <torch/library.h>

#include "emulator_aten/boxed.h"
#include "emulator_aten/composite.h"
#include "emulator_aten/quiet.h"
#include "emulator_aten/rules.h"
#include "emulator_aten/shape_rules.h"
#include "emulator_aten/special.h"

namespace emu_aten {
namespace {

using c10::DispatchKey;

// The dispatcher warns about each override.
struct Silent : c10::WarningHandler {
  void process(const c10::Warning&) override {}
};

template <typename Kernel, typename... Args>
torch::CppFunction boxed(Args&&... args) {
  return torch::CppFunction::makeFromBoxedFunctor(std::make_unique<Kernel>(std::forward<Args>(args)...));
}

void install_op(const c10::OperatorHandle& op, torch::Library& npu, torch::Library& autograd_npu) {
  const std::string name = c10::toString(op.operator_name());
  const Rule rule = rule_for(op);
  switch (rule) {
    case Rule::kLeave:
    case Rule::kSpecial:
      break;
    case Rule::kImplicit:
      npu.impl(name.c_str(), boxed<Reroute>(DispatchKey::CompositeImplicitAutograd));
      autograd_npu.impl(name.c_str(), boxed<Reroute>(DispatchKey::CompositeImplicitAutograd));
      return;
    case Rule::kExplicit:
      npu.impl(name.c_str(), boxed<Reroute>(DispatchKey::CompositeExplicitAutograd));
      break;
    case Rule::kBoxed:
      npu.impl(name.c_str(), boxed<BoxedKernel>(op, shape_rule_of(name)));
      break;
    case Rule::kRefuse:
      npu.impl(name.c_str(), boxed<Refuse>());
      break;
  }
  // torch_npu's own derivatives call its own ops; PyTorch's formulas call those above.
  if (op.hasKernelForDispatchKey(DispatchKey::AutogradPrivateUse1) &&
      op.hasKernelForDispatchKey(DispatchKey::Autograd)) {
    autograd_npu.impl(name.c_str(), boxed<Reroute>(DispatchKey::Autograd));
  }
}

void install() {
  Silent silent;
  const c10::WarningUtils::WarningHandlerGuard guard(&silent);
  // Never destroyed: at exit the dispatcher may be gone before this library's statics are.
  auto& npu = *new torch::Library(torch::Library::IMPL, "aten", DispatchKey::PrivateUse1, __FILE__, __LINE__);
  auto& autograd_npu =
      *new torch::Library(torch::Library::IMPL, "aten", DispatchKey::AutogradPrivateUse1, __FILE__, __LINE__);
  install_copy(npu);
  install_dropout(npu);
  for (const auto& name : c10::Dispatcher::singleton().getAllOpNames()) {
    if (name.getNamespace() != "aten") continue;
    // Some names only have kernels: torch_npu registers them before, or without, a schema.
    if (const auto op = c10::Dispatcher::singleton().findSchema(name)) install_op(*op, npu, autograd_npu);
  }
  install_attention(npu, autograd_npu);
}

}  // namespace
}  // namespace emu_aten

// Called by Python after torch_npu is imported. Null, or what went wrong.
extern "C" __attribute__((visibility("default"))) const char* emuAtenInstall() {
  static std::string problem;
  try {
    emu_aten::install();
    emu_aten::quiet_until_first_task();
    return nullptr;
  } catch (const std::exception& error) {
    problem = error.what();
    return problem.c_str();
  }
}
