#include "emulator_aten/alias.h"

#include <ATen/EmptyTensor.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/List.h>
#include <c10/core/InferenceMode.h>

#include <cstring>
#include <optional>

#include "emulator_aten/runtime.h"

namespace emu_aten {
namespace {

c10::Storage alias_storage(const c10::Storage& device) {
  void* data = device.nbytes() == 0 ? nullptr : host_twin(device.data());
  return c10::Storage(c10::Storage::use_byte_size_t(), device.nbytes(),
                      c10::DataPtr(data, c10::Device(c10::kCPU)),
                      /*allocator=*/nullptr, /*resizable=*/false);
}

}  // namespace

at::Tensor Aliases::of(const at::Tensor& device) {
  TORCH_CHECK_NOT_IMPLEMENTED(device.layout() == c10::kStrided,
                              "torch_llm_datadist.emulator computes on strided tensors only, not on ",
                              device.layout());
  // An inference tensor could not be written by a stream's thread, which is not in inference mode.
  std::optional<c10::InferenceMode> normal_tensors;
  if (c10::InferenceMode::is_enabled()) normal_tensors.emplace(false);
  c10::StorageImpl* key = device.storage().unsafeGetStorageImpl();
  const c10::Storage* shared = nullptr;
  for (const auto& [impl, storage] : storages_) {
    if (impl == key) shared = &storage;
  }
  if (!shared) shared = &storages_.emplace_back(key, alias_storage(device.storage())).second;

  auto alias = at::detail::make_tensor<c10::TensorImpl>(
      c10::Storage(*shared), c10::DispatchKeySet(c10::DispatchKey::CPU), device.dtype());
  alias.unsafeGetTensorImpl()->set_sizes_and_strides(device.sizes(), device.strides(),
                                                     device.storage_offset());
  if (device.unsafeGetTensorImpl()->is_wrapped_number())
    alias.unsafeGetTensorImpl()->set_wrapped_number(true);
  if (device.is_conj()) alias._set_conj(true);
  if (device.is_neg()) alias._set_neg(true);
  return alias;
}

at::Tensor copy_of_host_tensor(const at::Tensor& tensor) {
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  if (!tensor.unsafeGetTensorImpl()->is_wrapped_number()) return tensor.clone();
  // The number in `tensor + 2`: on every second op's path, so without the dispatcher.
  at::Tensor number(at::detail::empty_cpu({}, tensor.scalar_type()));
  std::memcpy(number.mutable_data_ptr(), tensor.const_data_ptr(), tensor.element_size());
  number.unsafeGetTensorImpl()->set_wrapped_number(true);
  return number;
}

c10::IValue map_tensors(const c10::IValue& value, const std::function<at::Tensor(const at::Tensor&)>& map) {
  if (value.isTensor()) return value.toTensor().defined() ? c10::IValue(map(value.toTensor())) : value;
  if (value.isTensorList()) {
    c10::List<at::Tensor> mapped;
    for (const at::Tensor& tensor : value.toTensorVector())
      mapped.push_back(tensor.defined() ? map(tensor) : tensor);
    return mapped;
  }
  if (value.isOptionalTensorList()) {
    c10::List<std::optional<at::Tensor>> mapped;
    for (const std::optional<at::Tensor>& tensor : value.toOptionalTensorVector()) {
      mapped.push_back(tensor && tensor->defined() ? std::optional<at::Tensor>(map(*tensor)) : tensor);
    }
    return mapped;
  }
  return value;
}

}  // namespace emu_aten
