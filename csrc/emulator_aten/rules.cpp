#include "emulator_aten/rules.h"

#include <algorithm>
#include <string_view>
#include <unordered_set>

#include "emulator_aten/signature.h"

namespace emu_aten {
namespace {

using c10::DispatchKey;

// They deal in storage and memory, not in values.
const std::unordered_set<std::string_view> kStorageOps = {
    "aten::empty",
    "aten::empty_like",
    "aten::empty_strided",
    "aten::new_empty",
    "aten::new_empty_strided",
    "aten::set_",
    "aten::resize_",
    "aten::resize_as_",
    "aten::_resize_output_",
    "aten::record_stream",
    "aten::is_pinned",
    "aten::_pin_memory",
    "aten::is_set_to",
    "aten::_lazy_clone",
    "aten::_local_scalar_dense",
    "aten::_copy_from",
    "aten::_copy_from_and_resize",
    "aten::_has_compatible_shallow_copy_type",
};

const std::unordered_set<std::string_view> kSpecialOps = {
    "aten::copy_",
    "aten::scaled_dot_product_attention",
    "aten::native_dropout",
};

bool makes_tensors_on_a_device(const c10::OperatorHandle& op) {
  return std::ranges::any_of(op.schema().arguments(),
                             [](const c10::Argument& argument) { return argument.name() == "device"; });
}

}  // namespace

Rule rule_for(const c10::OperatorHandle& op) {
  const std::string& name = op.operator_name().name;
  auto has = [&](DispatchKey key) { return op.hasKernelForDispatchKey(key); };
  if (kSpecialOps.contains(name) && op.operator_name().overload_name.empty()) return Rule::kSpecial;
  if (kStorageOps.contains(name)) return Rule::kLeave;

  const bool overridden = has(DispatchKey::PrivateUse1);
  // Where the CPU has a kernel of its own beside the composition, its results are wanted.
  if (has(DispatchKey::CompositeImplicitAutograd) && !has(DispatchKey::CPU)) {
    return overridden || has(DispatchKey::AutogradPrivateUse1) ? Rule::kImplicit : Rule::kLeave;
  }
  if (!overridden && !has(DispatchKey::CPU)) return Rule::kLeave;
  if (Signature(op).is_view) return Rule::kLeave;
  if (has(DispatchKey::CompositeExplicitAutograd)) {
    if (!overridden) return Rule::kLeave;
    return makes_tensors_on_a_device(op) || name == "aten::clone" ? Rule::kExplicit : Rule::kBoxed;
  }
  const bool runs_on_cpu = has(DispatchKey::CPU) || has(DispatchKey::CompositeExplicitAutogradNonFunctional);
  return runs_on_cpu ? Rule::kBoxed : Rule::kRefuse;
}

}  // namespace emu_aten
