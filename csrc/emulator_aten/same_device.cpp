#include "emulator_aten/same_device.h"

#include <ATen/core/op_registration/adaption.h>

#include <string_view>
#include <unordered_set>

namespace emu_aten {
namespace {

// torch_npu brings these to the device itself.
const std::unordered_set<std::string_view> kFromHost = {"input_lengths", "target_lengths", "targets",
                                                        "lengths", "batch_sizes"};

bool may_come_from_host(const c10::IValue& value, std::string_view argument) {
  return value.isOptionalTensorList() || kFromHost.contains(argument);  // the indices of `tensor[indices]`
}

bool is_elsewhere(const at::Tensor& tensor, c10::Device device) {
  if (!tensor.defined() || tensor.device() == device) return false;
  return !(tensor.device().is_cpu() && tensor.dim() == 0);
}

const at::Tensor* first_elsewhere(const c10::IValue& value, c10::Device device, at::Tensor& element) {
  if (value.isTensor()) return is_elsewhere(value.toTensor(), device) ? &value.toTensor() : nullptr;
  if (!value.isTensorList() && !value.isOptionalTensorList()) return nullptr;
  for (const c10::IValue& each : value.toListRef()) {
    if (!each.isTensor() || !is_elsewhere(each.toTensor(), device)) continue;
    element = each.toTensor();
    return &element;
  }
  return nullptr;
}

}  // namespace

Devices check_devices(const c10::OperatorHandle& op, c10::ArrayRef<c10::IValue> arguments,
                      c10::Device device) {
  for (size_t i = 0; i < arguments.size(); ++i) {
    at::Tensor element;
    const at::Tensor* elsewhere = first_elsewhere(arguments[i], device, element);
    if (elsewhere == nullptr) continue;
    const std::string& argument = op.schema().arguments()[i].name();
    if (elsewhere->device().is_cpu() && may_come_from_host(arguments[i], argument)) continue;
    if (op.operator_name().name.starts_with("aten::_foreach_")) return Devices::kSeveral;
    c10::impl::common_device_check_failure(device, *elsewhere, op.operator_name().name.c_str(),
                                           argument.c_str());
  }
  return Devices::kOne;
}

}  // namespace emu_aten
