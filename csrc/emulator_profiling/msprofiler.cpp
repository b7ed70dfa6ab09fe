// libmsprofiler.so: switching CANN's profiler on and off. There is no hardware to sample: sessions are kept
// in order as documented, and yield no device records.
#include <mutex>
#include <set>

#include "acl/acl_prof.h"

namespace {

constexpr aclError kOk = ACL_SUCCESS;
constexpr aclError kRepeatInit = ACL_ERROR_REPEAT_INITIALIZE;
constexpr aclError kNotInitialised = ACL_ERROR_UNINITIALIZE;
constexpr aclError kInvalid = ACL_ERROR_INVALID_PARAM;

std::mutex mutex;
bool initialised = false;
std::set<const aclprofConfig*> configs;

}  // namespace

struct aclprofConfig {};
struct aclprofStepInfo {};

#define EXPORTED extern "C" __attribute__((visibility("default")))

EXPORTED aclError aclprofInit(const char* path, size_t length) {
  const std::lock_guard lock(mutex);
  if (path == nullptr || length == 0) return kInvalid;
  if (initialised) return kRepeatInit;
  initialised = true;
  return kOk;
}

EXPORTED aclError aclprofFinalize() {
  const std::lock_guard lock(mutex);
  if (!initialised) return kNotInitialised;
  initialised = false;
  return kOk;
}

EXPORTED aclprofConfig* aclprofCreateConfig(uint32_t* devices, uint32_t count, aclprofAicoreMetrics,
                                            const aclprofAicoreEvents*, uint64_t) {
  if (devices == nullptr || count == 0) return nullptr;
  auto* config = new aclprofConfig;
  const std::lock_guard lock(mutex);
  configs.insert(config);
  return config;
}

EXPORTED aclError aclprofDestroyConfig(const aclprofConfig* config) {
  const std::lock_guard lock(mutex);
  if (configs.erase(config) == 0) return kInvalid;
  delete config;
  return kOk;
}

static aclError check(const aclprofConfig* config) {
  const std::lock_guard lock(mutex);
  if (!initialised) return kNotInitialised;
  return configs.contains(config) ? kOk : kInvalid;
}

EXPORTED aclError aclprofWarmup(const aclprofConfig* config) { return check(config); }
EXPORTED aclError aclprofStart(const aclprofConfig* config) { return check(config); }
EXPORTED aclError aclprofStop(const aclprofConfig* config) { return check(config); }
EXPORTED aclError aclprofSetConfig(aclprofConfigType, const char* config, size_t) {
  return config != nullptr ? kOk : kInvalid;
}
EXPORTED aclError aclprofRegisterDeviceCallback() { return kOk; }
EXPORTED aclError aclprofMarkEx(const char* message, size_t, aclrtStream) {
  return message != nullptr ? kOk : kInvalid;
}
EXPORTED aclprofStepInfo* aclprofCreateStepInfo() { return new aclprofStepInfo; }
EXPORTED void aclprofDestroyStepInfo(aclprofStepInfo* step) { delete step; }
EXPORTED aclError aclprofGetStepTimestamp(aclprofStepInfo* step, aclprofStepTag, aclrtStream) {
  return step != nullptr ? kOk : kInvalid;
}
