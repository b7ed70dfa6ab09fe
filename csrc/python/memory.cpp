// Memory that is not a registered cache: tensors over addresses, shared host memory, paged caches.
#include <torch_npu/csrc/aten/common/from_blob.h>
#include <torch_npu/csrc/core/npu/NPUFunctions.h>

#include "cache/paged.h"
#include "python/tensors.h"
#include "transport/mapped/host_memory.h"

namespace datadist {
namespace {

at::Tensor tensor_from_address(int64_t address, const std::vector<int64_t>& shape, at::ScalarType dtype,
                               int device) {
  require(address > 0, kParamInvalid, "tensor_from_address: address ", address);
  if (device < 0)
    return at::from_blob(reinterpret_cast<void*>(address), shape, at::TensorOptions().dtype(dtype));
  const c10::Device npu(c10::DeviceType::PrivateUse1, static_cast<c10::DeviceIndex>(device));
  const c10::DeviceGuard guard(npu);
  // torch_npu keeps a description in its storages, so a plain one is too small for it.
  return at_npu::native::from_blob(reinterpret_cast<void*>(address), shape, npu,
                                   at::TensorOptions().dtype(dtype).device(npu));
}

}  // namespace

void define_memory(py::module_& m) {
  const auto nogil = py::call_guard<py::gil_scoped_release>();
  m.def(
      "paged_open",
      [](std::vector<at::Tensor> tensors) {
        return paged_caches().add(std::make_shared<PagedCache>(std::move(tensors)));
      },
      py::arg("tensors"), nogil);
  m.def("paged_close", [](int64_t handle) { paged_caches().remove(handle); }, py::arg("handle"), nogil);
  m.def("tensor_from_address", &tensor_from_address, py::arg("address"), py::arg("shape"), py::arg("dtype"),
        py::arg("device"), nogil);
  m.def("allocate_shared_host", &mapped::allocate_shared_host, py::arg("device"), py::arg("bytes"), nogil);
}

}  // namespace datadist
