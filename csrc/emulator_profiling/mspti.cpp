// libmspti.so: what torch.profiler asks for the records of NPU kernels. Subscriptions are accepted and no
// records come, so that spans around emulated work hold what PyTorch itself saw on the host.
#include <cstddef>
#include <cstdint>

namespace {

constexpr int kSuccess = 0;
constexpr int kInvalidParameter = 1;
constexpr int kNoMoreRecords = 2;
char subscription;

}  // namespace

#define EXPORTED extern "C" __attribute__((visibility("default")))

EXPORTED int msptiSubscribe(void** subscriber, void*, void*) {
  if (subscriber == nullptr) return kInvalidParameter;
  *subscriber = &subscription;
  return kSuccess;
}
EXPORTED int msptiUnsubscribe(void* subscriber) {
  return subscriber == &subscription ? kSuccess : kInvalidParameter;
}
EXPORTED int msptiActivityRegisterCallbacks(void* requested, void* completed) {
  return requested != nullptr && completed != nullptr ? kSuccess : kInvalidParameter;
}
EXPORTED int msptiActivityEnable(int) { return kSuccess; }
EXPORTED int msptiActivityDisable(int) { return kSuccess; }
EXPORTED int msptiActivityFlushAll(uint32_t) { return kSuccess; }
EXPORTED int msptiActivityGetNextRecord(uint8_t*, size_t, void** record) {
  if (record != nullptr) *record = nullptr;
  return kNoMoreRecords;
}
EXPORTED int msptiActivityPushExternalCorrelationId(int, uint64_t) { return kSuccess; }
EXPORTED int msptiActivityPopExternalCorrelationId(int, uint64_t* last) {
  if (last != nullptr) *last = 0;
  return kSuccess;
}
