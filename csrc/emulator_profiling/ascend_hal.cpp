// libascend_hal.so: the driver's version and counters, which the profiler asks for. Version 0 says that this
// driver offers no counters, and the profiler then uses the host's clock.
#include <cstdint>

#define EXPORTED extern "C" __attribute__((visibility("default")))

EXPORTED int halGetAPIVersion(int* version) {
  constexpr int kInvalidValue = 3;
  if (version == nullptr) return kInvalidValue;
  *version = 0;
  return 0;
}

EXPORTED int halGetDeviceInfo(uint32_t, int32_t, int32_t, int64_t*) {
  constexpr int kNotSupported = 0xfffe;
  return kNotSupported;
}
