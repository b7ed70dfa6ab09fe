// libms_tools_ext.so: named ranges for profilers. Here they go to the trace of the emulated runtime, when it
// writes one.
#include <dlfcn.h>

#include <cstdint>

namespace {

template <class Function>
Function* of_runtime(const char* name) {
  return reinterpret_cast<Function*>(dlsym(RTLD_DEFAULT, name));
}

}  // namespace

#define EXPORTED extern "C" __attribute__((visibility("default")))

// 0: nobody records it, or it was refused.
EXPORTED uint64_t mstxRangeStartA(const char* message, void* stream) {
  static auto* const start = of_runtime<uint64_t(const char*, void*)>("emuRangeStart");
  return start == nullptr || message == nullptr ? 0 : start(message, stream);
}

EXPORTED void mstxRangeEnd(uint64_t id) {
  static auto* const end = of_runtime<void(uint64_t)>("emuRangeEnd");
  if (end != nullptr && id != 0) end(id);
}

EXPORTED void mstxMarkA(const char* message, void* stream) { mstxRangeEnd(mstxRangeStartA(message, stream)); }
