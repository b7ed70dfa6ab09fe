// The profiler's reporting hooks: accepted and dropped.

#include <chrono>
#include <cstddef>
#include <cstdint>

#define EXPORTED extern "C" __attribute__((visibility("default")))

EXPORTED int32_t MsprofRegisterCallback(uint32_t, int32_t (*)(uint32_t, void*, uint32_t)) { return 0; }
EXPORTED int32_t MsprofReportApi(uint32_t, const void*) { return 0; }
EXPORTED int32_t MsprofReportCompactInfo(uint32_t, const void*, uint32_t) { return 0; }
EXPORTED int32_t MsprofReportAdditionalInfo(uint32_t, const void*, uint32_t) { return 0; }

EXPORTED uint64_t MsprofSysCycleTime() {
  return static_cast<uint64_t>(std::chrono::steady_clock::now().time_since_epoch().count());
}

// Any stable number will do: it is only ever compared.
EXPORTED uint64_t MsprofGetHashId(const char* text, size_t length) {
  uint64_t hash = 14695981039346656037ULL;
  for (size_t i = 0; i < length; ++i) hash = (hash ^ static_cast<unsigned char>(text[i])) * 1099511628211ULL;
  return hash;
}
