// What the bodies of the ops share: the caller's stream, and the arguments that all of them check alike.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/DeviceGuard.h>
#include <torch_npu/csrc/core/npu/NPUFunctions.h>
#include <torch_npu/csrc/core/npu/NPUGraphsUtils.h>
#include <torch_npu/csrc/core/npu/NPUStream.h>

#include <cstdint>
#include <optional>

#include "acl/acl_rt.h"
#include "error.h"
#include "messages/messages.h"

namespace datadist {

// The current stream of a device, with that device current: the caller's may be another one. Where it is not,
// nothing is set, nor set back, which would be a tenth of what an op costs the host.
struct StreamInUse {
  std::optional<c10::DeviceGuard> guard;
  aclrtStream raw;
  explicit StreamInUse(int device) {
    const auto index = static_cast<c10::DeviceIndex>(device);
    if (c10_npu::current_device() != index) guard.emplace(c10::Device(c10::DeviceType::PrivateUse1, index));
    raw = c10_npu::getCurrentNPUStream(index).stream(false);
  }
};

inline void require_no_capture(const StreamInUse& stream, const char* asked) {
  if (c10_npu::isStreamCapturingMayInitCtx(stream.raw))
    refuse(Message::stream_captures, {{"asked", asked}, {"value", "the current stream"}});
}

inline void require_int32(const at::Tensor& status, const char* asked) {
  if (!(status.scalar_type() == at::kInt && status.numel() == 1))
    refuse(Message::bad_value, {{"name", join(asked, ": status")},
                                {"value", join(status.scalar_type(), " with ", status.numel(), " elements")},
                                {"expected", "int32[1]"}});
}

inline void require_status(const at::Tensor& status, int device, const char* asked) {
  require_int32(status, asked);
  if (!(status.device().is_privateuseone() && status.device().index() == device))
    refuse(Message::bad_value, {{"name", join(asked, ": status")},
                                {"value", join("on ", status.device().str())},
                                {"expected", join("npu:", device, ", where the caches are")}});
}

// What queues nothing on a stream: a status and tensors on the CPU, where all earlier work of the calling
// thread is done and what must wait blocks it.
inline bool is_on_host(const at::Tensor& status, at::TensorList others) {
  if (!status.device().is_cpu()) return false;
  for (const at::Tensor& tensor : others) {
    if (!tensor.device().is_cpu()) return false;
  }
  return true;
}

inline void write_status(const at::Tensor& status, int64_t code) {
  *status.data_ptr<int32_t>() = status_value(code);
}

struct BlockIds {
  at::Tensor held;
  const int64_t* ids;
  size_t length;
  BlockIds(const at::Tensor& tensor, const char* name, const char* asked) : held(tensor.contiguous()) {
    if (!(tensor.device().is_cpu() && tensor.scalar_type() == at::kLong && tensor.dim() == 1))
      refuse(Message::bad_value, {{"name", join(asked, ": ", name)},
                                  {"value", join(tensor.scalar_type(), " of ", tensor.dim(),
                                                 " dimensions on ", tensor.device().str())},
                                  {"expected", "a one-dimensional int64 CPU tensor"}});
    ids = held.const_data_ptr<int64_t>();
    length = static_cast<size_t>(held.numel());
  }
};

}  // namespace datadist
