// Memory that is not a registered cache: tensors over addresses, shared host memory, paged caches.
#include <torch_npu/csrc/aten/common/from_blob.h>
#include <torch_npu/csrc/core/npu/NPUFunctions.h>
#include <torch_npu/csrc/framework/OpCommand.h>

#include <map>
#include <mutex>

#include "acl/queue.h"
#include "cache/paged.h"
#include "link/engine.h"
#include "link/forked.h"
#include "link/stream_mark.h"
#include "messages/messages.h"
#include "ops/arguments.h"
#include "python/tensors.h"
#include "transport/mapped/fabric.h"
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

constexpr auto kFirstPause = std::chrono::microseconds(100);
constexpr auto kLastPause = std::chrono::microseconds(2000);

// Whether the calling thread's current stream has got here in time. It waits neither with the GIL nor by a
// call that waits for a stream.
bool wait_for_current_stream(int device, int64_t timeout_ms, const std::string& asked) {
  require_not_forked(asked.c_str());
  const auto engine = Engine::of(device);
  const auto mark = std::make_shared<StreamMark>(&engine->words());
  {
    const StreamInUse stream(device);
    if (c10_npu::isStreamCapturingMayInitCtx(stream.raw)) return true;  // its kernels run in replays
    engine->watch(mark);
    try {
      at_npu::native::OpCommand::RunOpApiV2("wait_for_current_stream", [stream = stream.raw, mark]() -> int {
        if (acl::queue_write(mark->word(), 1, stream) != 0) mark->refuse();
        return 0;
      });
    } catch (...) {
      mark->refuse();
      throw;
    }
  }
  const auto deadline = Clock::now() + std::chrono::milliseconds(timeout_ms);
  // The watchdog has a look by itself, though for a short copy not soon enough.
  for (auto pause = kFirstPause; pause < kLastPause && Clock::now() + pause < deadline; pause *= 2) {
    engine->wake();
    if (mark->wait_until(Clock::now() + pause, asked.c_str())) return true;
  }
  return mark->wait_until(deadline, asked.c_str());
}

// Fabric memory that was a tensor is kept for the next one: kernels that torch has queued may still use it,
// and unmapping would not wait for them.
at::Tensor allocate_fabric_tensor(int device, int64_t bytes) {
  require(bytes > 0, kParamInvalid, "allocate_fabric: ", bytes, " bytes");
  static std::mutex mutex;
  static auto* kept = new std::multimap<std::pair<int, int64_t>, DeviceMemory>;
  DeviceMemory memory;
  {
    std::lock_guard lock(mutex);
    const auto found = kept->find({device, bytes});
    if (found != kept->end()) {
      memory = std::move(found->second);
      kept->erase(found);
    }
  }
  if (memory.address == nullptr) memory = mapped::allocate_fabric(device, static_cast<size_t>(bytes));
  const c10::Device npu(c10::DeviceType::PrivateUse1, static_cast<c10::DeviceIndex>(device));
  const c10::DeviceGuard guard(npu);
  char* const address = memory.address;
  const auto keep = [device, bytes, memory = std::move(memory)](void*) {
    std::lock_guard lock(mutex);
    kept->emplace(std::pair{device, bytes}, memory);
  };
  return at_npu::native::from_blob(address, {bytes}, keep, at::TensorOptions().dtype(at::kByte).device(npu),
                                   npu);
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
  m.def("wait_for_current_stream", &wait_for_current_stream, py::arg("device"), py::arg("timeout_ms"),
        py::arg("asked"), nogil);
  m.def("why_no_fabric", &mapped::why_no_fabric, py::arg("device"), nogil);
  m.def("super_pod_of", &mapped::super_pod_of, py::arg("device"), nogil);
  m.def("allocate_fabric", &allocate_fabric_tensor, py::arg("device"), py::arg("bytes"), nogil);
  m.def("allocate_shared_host", &mapped::allocate_shared_host, py::arg("device"), py::arg("bytes"), nogil);
}

}  // namespace datadist
