#include "acl/queue.h"

#include "acl/check.h"
#include "acl/symbols.h"

namespace datadist::acl {

aclError queue_write(void* word, uint64_t value, aclrtStream stream) {
  return symbols().aclrtValueWrite(word, value, 0, stream);
}

aclError queue_wait(void* word, uint64_t value, aclrtStream stream) {
  return symbols().aclrtValueWait(word, value, ACL_STREAM_WAIT_VALUE_GEQ, stream);
}

aclError queue_wait_equal(void* word, uint64_t value, aclrtStream stream) {
  return symbols().aclrtValueWait(word, value, ACL_STREAM_WAIT_VALUE_EQ, stream);
}

aclError queue_copy(void* dst, const void* src, size_t bytes, aclrtStream stream) {
  return aclrtMemcpyAsync(dst, bytes, src, bytes, ACL_MEMCPY_DEVICE_TO_DEVICE, stream);
}

aclError queue_copy_rows(void* dst, size_t dst_pitch, const void* src, size_t src_pitch, size_t width,
                         size_t height, aclrtStream stream) {
  return symbols().aclrtMemcpy2dAsync(dst, dst_pitch, src, src_pitch, width, height,
                                      ACL_MEMCPY_DEVICE_TO_DEVICE, stream);
}

aclError queue_to_host(void* host, const void* device, size_t bytes, aclrtStream stream) {
  return aclrtMemcpyAsync(host, bytes, device, bytes, ACL_MEMCPY_DEVICE_TO_HOST, stream);
}

aclError queue_to_device(void* device, const void* host, size_t bytes, aclrtStream stream) {
  return aclrtMemcpyAsync(device, bytes, host, bytes, ACL_MEMCPY_HOST_TO_DEVICE, stream);
}

aclError queue_fill(void* dst, int byte, size_t bytes, aclrtStream stream) {
  return symbols().aclrtMemsetAsync(dst, bytes, byte, bytes, stream);
}

aclError queue_call(void (*function)(void*), void* argument, aclrtStream stream) {
  return symbols().aclrtLaunchHostFunc(stream, function, argument);
}

aclError synchronize(aclrtStream stream, int timeout_ms) {
  return symbols().aclrtSynchronizeStreamWithTimeout(stream, timeout_ms);
}

bool has_run_dry(aclrtStream stream) {
  // A task that failed may be told of here, once, while others are still queued behind it.
  aclrtStreamStatus status;
  aclError code = symbols().aclrtStreamQuery(stream, &status);
  if (code != 0) code = symbols().aclrtStreamQuery(stream, &status);
  return code != 0 || status == ACL_STREAM_STATUS_COMPLETE;
}

aclError set_device(int device) { return aclrtSetDevice(device); }

ThreadDevice::ThreadDevice(int device) : device_(device) { DATADIST_ACL(aclrtSetDevice(device_)); }

ThreadDevice::~ThreadDevice() { aclrtResetDevice(device_); }

bool is_page_locked(const void* host) {
  aclrtPtrAttributes attributes{};
  return symbols().aclrtPointerGetAttributes(host, &attributes) == 0 &&
         attributes.location.type == ACL_MEM_LOCATION_TYPE_HOST;
}

aclError lock_pages(void* host, size_t bytes) {
  return symbols().aclrtHostRegisterV2(host, bytes, ACL_HOST_REG_PINNED);
}

void unlock_pages(void* host) { symbols().aclrtHostUnregister(host); }

aclError enable_peer_access(int peer_device) { return aclrtDeviceEnablePeerAccess(peer_device, 0); }

}  // namespace datadist::acl
