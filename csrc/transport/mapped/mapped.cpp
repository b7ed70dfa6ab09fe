#include "transport/mapped/mapped.h"

#include <ATen/ops/empty.h>
#include <torch_npu/csrc/core/npu/NPUCachingAllocator.h>
#include <torch_npu/csrc/core/npu/NPUFunctions.h>

#include "acl/check.h"
#include "acl/stream.h"
#include "acl/symbols.h"
#include "error.h"

namespace datadist::mapped {
namespace {

// torch_npu's allocator acts on the current device of the calling thread, and its thread-local record of that
// device may be out of step with the runtime's context (a feeding thread sits in its link's own). Sets both,
// restores both.
class AllocatorScope {
 public:
  explicit AllocatorScope(int device) {
    DATADIST_ACL(c10_npu::GetDevice(&previous_));
    DATADIST_ACL(c10_npu::SetDevice(static_cast<c10::DeviceIndex>(device)));
    DATADIST_ACL(aclrtSetDevice(device));
  }
  ~AllocatorScope() { c10_npu::SetDevice(static_cast<c10::DeviceIndex>(previous_)); }
  AllocatorScope(const AllocatorScope&) = delete;
  AllocatorScope& operator=(const AllocatorScope&) = delete;

 private:
  acl::ContextScope restore_;  // last, after torch_npu's own record
  int32_t previous_ = 0;
};

class MappedTransport : public Transport {
 public:
  MappedTransport(int device, int peer_device, bool in_this_process)
      : device_(device), peer_device_(peer_device), in_this_process_(in_this_process) {}

  Mapped map(const Exported& memory) override {
    if (in_this_process_) {
      enable_peer_access();
      return {nullptr, reinterpret_cast<char*>(memory.address)};
    }
    AllocatorScope scope(device_);
    std::shared_ptr<void> segment = c10_npu::NPUCachingAllocator::getIpcDevPtr(memory.handle);
    char* address = static_cast<char*>(segment.get()) + memory.offset;
    return {std::move(segment), address};
  }

  aclError copy(void* dst, const void* src, size_t bytes, aclrtStream stream) override {
    return aclrtMemcpyAsync(dst, bytes, src, bytes, ACL_MEMCPY_DEVICE_TO_DEVICE, stream);
  }

  aclError write_word(void* remote_word, uint64_t value, aclrtStream stream) override {
    return acl::symbols().aclrtValueWrite(remote_word, value, 0, stream);
  }

 private:
  void enable_peer_access() {
    if (has_peer_access_ || peer_device_ == device_) return;
    AllocatorScope scope(device_);
    DATADIST_ACL(aclrtDeviceEnablePeerAccess(peer_device_, 0));
    has_peer_access_ = true;
  }

  const int device_;
  const int peer_device_;
  const bool in_this_process_;
  bool has_peer_access_ = false;
};

}  // namespace

DeviceMemory allocate(int device, size_t bytes) {
  AllocatorScope scope(device);
  const auto options =
      at::TensorOptions().dtype(at::kByte).device(c10::Device(c10::DeviceType::PrivateUse1, device));
  auto tensor = std::make_shared<at::Tensor>(at::empty({static_cast<int64_t>(bytes)}, options));
  return {static_cast<char*>(tensor->data_ptr()), tensor};
}

Exported export_address(int device, void* address) {
  AllocatorScope scope(device);
  try {
    const auto shared = c10_npu::NPUCachingAllocator::shareIpcHandle(address);
    return {shared.handle, shared.offset, reinterpret_cast<uint64_t>(address)};
  } catch (const std::exception& error) {
    throw Error(kParamInvalid,
                join("device memory at ", address,
                     " cannot be exported to peers; memory of torch's NPU allocator was expected (",
                     error.what(), ")"));
  }
}

std::unique_ptr<Transport> make_transport(int device, int peer_device, bool in_this_process) {
  return std::make_unique<MappedTransport>(device, peer_device, in_this_process);
}

}  // namespace datadist::mapped
