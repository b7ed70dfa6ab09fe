#include "emulator_aten/signature.h"

#include <ATen/core/enum_tag.h>
#include <ATen/core/jit_type.h>

#include <algorithm>
#include <string>
#include <unordered_map>

namespace emu_aten {
namespace {

bool holds_tensors(const c10::Type& type) {
  return type.isSubtypeOf(*c10::TensorType::get()) || type.isSubtypeOf(*c10::ListType::ofTensors());
}

std::optional<size_t> argument_with_alias(const c10::FunctionSchema& schema, const c10::AliasInfo& alias) {
  for (size_t i = 0; i < schema.arguments().size(); ++i) {
    const c10::AliasInfo* own = schema.arguments()[i].alias_info();
    if (own && own->beforeSets() == alias.beforeSets()) return i;
  }
  return std::nullopt;
}

using Overloads = std::unordered_map<std::string, std::vector<c10::OperatorName>>;

const Overloads& overloads_by_name() {
  static const Overloads table = [] {
    Overloads found;
    for (auto& name : c10::Dispatcher::singleton().getAllOpNames()) found[name.name].push_back(name);
    return found;
  }();
  return table;
}

// True when `out` takes the arguments of `functional`, then one written tensor per return.
bool is_out_form_of(const c10::FunctionSchema& out, const c10::FunctionSchema& functional) {
  const auto& given = functional.arguments();
  const auto& taken = out.arguments();
  if (taken.size() != given.size() + functional.returns().size()) return false;
  for (size_t i = 0; i < taken.size(); ++i) {
    if (i < given.size()) {
      if (taken[i].name() != given[i].name() || *taken[i].type() != *given[i].type()) return false;
    } else if (!taken[i].alias_info() || !taken[i].alias_info()->isWrite() || !taken[i].kwarg_only()) {
      return false;
    }
  }
  return true;
}

}  // namespace

Signature::Signature(const c10::OperatorHandle& op) {
  const c10::FunctionSchema& schema = op.schema();
  arguments = schema.arguments().size();
  for (size_t i = 0; i < arguments; ++i) {
    const c10::Argument& argument = schema.arguments()[i];
    if (argument.alias_info() && argument.alias_info()->isWrite()) {
      written.push_back(i);
      if (argument.kwarg_only()) outs.push_back(i);
    }
    const auto& type = argument.type();
    if (type->kind() == c10::TypeKind::GeneratorType ||
        (type->kind() == c10::TypeKind::OptionalType &&
         type->expectRef<c10::OptionalType>().getElementType()->kind() == c10::TypeKind::GeneratorType)) {
      generator = i;
    }
  }
  for (const c10::Argument& value : schema.returns()) {
    const c10::AliasInfo* alias = value.alias_info();
    returns_written.push_back(alias && alias->isWrite() ? argument_with_alias(schema, *alias) : std::nullopt);
    if (returns_written.back()) continue;
    has_fresh_returns = true;
    is_view |= alias != nullptr;
    needs_data |= !holds_tensors(*value.type());
  }
  is_view |= op.hasTag(at::Tag::inplace_view);
  // Losses: first as large as the input, then reduced to a number.
  resizes_outs =
      std::ranges::any_of(schema.arguments(), [](const auto& a) { return a.name() == "reduction"; });
  needs_data |= op.hasTag(at::Tag::data_dependent_output) || op.hasTag(at::Tag::dynamic_output_shape);
}

std::optional<c10::OperatorHandle> find_out_variant(const c10::OperatorHandle& op) {
  const c10::FunctionSchema& schema = op.schema();
  if (!op.hasKernelForDispatchKey(c10::DispatchKey::CPU)) return std::nullopt;
  const bool all_tensors =
      !schema.returns().empty() && std::ranges::all_of(schema.returns(), [](const c10::Argument& value) {
        return !value.alias_info() && value.type()->kind() == c10::TypeKind::TensorType;
      });
  if (!all_tensors) return std::nullopt;
  const auto overloads = overloads_by_name().find(op.operator_name().name);
  if (overloads == overloads_by_name().end()) return std::nullopt;
  for (const c10::OperatorName& name : overloads->second) {
    const auto candidate = c10::Dispatcher::singleton().findSchema(name);
    if (candidate && is_out_form_of(candidate->schema(), schema) &&
        candidate->hasKernelForDispatchKey(c10::DispatchKey::CPU)) {
      return candidate;
    }
  }
  return std::nullopt;
}

}  // namespace emu_aten
