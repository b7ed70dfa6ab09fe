#include "acl/stream.h"

#include "acl/check.h"
#include "acl/symbols.h"

namespace datadist::acl {

Context::Context(int device) : device_(device) {
  DATADIST_ACL(symbols().aclrtCreateContext(&handle_, device));
}

Context::~Context() {
  if (handle_ != nullptr) symbols().aclrtDestroyContext(handle_);
}

void Context::make_current() const { DATADIST_ACL(aclrtSetCurrentContext(handle_)); }

Stream::Stream(const Context&, OnFailure mode) {
  DATADIST_ACL(aclrtCreateStreamWithConfig(&handle_, 0, ACL_STREAM_FAST_LAUNCH));
  const aclError code = symbols().aclrtSetStreamFailureMode(handle_, static_cast<uint64_t>(mode));
  if (code != 0) {
    symbols().aclrtDestroyStreamForce(handle_);
    handle_ = nullptr;
    raise("aclrtSetStreamFailureMode", code);
  }
}

Stream::~Stream() {
  if (handle_ == nullptr) return;
  symbols().aclrtStreamAbort(
      handle_);  // what runs ends before this returns; a forced destroy alone does not wait for it
  symbols().aclrtDestroyStreamForce(handle_);
}

aclError Stream::query() const {
  aclrtStreamStatus status;
  return symbols().aclrtStreamQuery(handle_, &status);
}

Event::Event() { DATADIST_ACL(aclrtCreateEventExWithFlag(&handle_, ACL_EVENT_CAPTURE_STREAM_PROGRESS)); }

Event::~Event() { aclrtDestroyEvent(handle_); }

aclError Event::record(const Stream& stream) { return aclrtRecordEvent(handle_, stream.get()); }

aclError Event::query(bool* is_passed) const {
  aclrtEventRecordedStatus status = ACL_EVENT_RECORDED_STATUS_NOT_READY;
  const aclError code = symbols().aclrtQueryEventStatus(handle_, &status);
  *is_passed = status == ACL_EVENT_RECORDED_STATUS_COMPLETE;
  return code;
}

ContextScope::ContextScope() { aclrtGetCurrentContext(&previous_); }

ContextScope::~ContextScope() {
  if (previous_ != nullptr) aclrtSetCurrentContext(previous_);
}

PinnedBuffer::PinnedBuffer(size_t bytes) { DATADIST_ACL(aclrtMallocHost(&data_, bytes)); }

PinnedBuffer::~PinnedBuffer() {
  if (data_ != nullptr) aclrtFreeHost(data_);
}

void read_rows(char* dst, size_t dst_pitch, const char* src, size_t src_pitch, size_t width, size_t rows,
               aclrtStream stream) {
  DATADIST_ACL(symbols().aclrtMemcpy2dAsync(dst, dst_pitch, src, src_pitch, width, rows,
                                            ACL_MEMCPY_DEVICE_TO_HOST, stream));
}

}  // namespace datadist::acl
