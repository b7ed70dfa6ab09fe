#include "emulator/config.h"

#include <cstdlib>
#include <cstring>

#include "emulator/copy_engines.h"
#include "emulator/device.h"
#include "emulator/environment.h"
#include "emulator/ledger.h"

namespace emu {
namespace {

// As the real runtime reads the list: it ends at the first entry that names no device.
std::vector<int32_t> visible_devices(int32_t count) {
  std::vector<int32_t> all(count);
  for (int32_t i = 0; i < count; ++i) all[i] = i;
  const char* list = given("ASCEND_RT_VISIBLE_DEVICES");
  if (list == nullptr) return all;
  std::vector<int32_t> visible;
  for (const char* at = list; *at != '\0';) {
    char* end = nullptr;
    const long id = std::strtol(at, &end, 10);
    if (end == at || id < 0 || id >= count) break;
    visible.push_back(static_cast<int32_t>(id));
    if (*end != ',') break;
    at = end + 1;
  }
  return visible;
}

bool is_time_simulated() {
  constexpr const char* kTime = "TORCH_LLM_DATADIST_EMULATE_TIME";
  const char* value = given(kTime);
  if (value == nullptr || std::strcmp(value, "real") == 0) return false;
  if (std::strcmp(value, "simulated") != 0) give_up(kTime, value, "real or simulated");
  return true;
}

}  // namespace

Config Config::from_environment() {
  Config config;
  config.profile = Profile::from_environment();
  config.device_memory = number("TORCH_LLM_DATADIST_EMULATE_DEVICE_MEMORY", config.device_memory);
  config.lazy = number("TORCH_LLM_DATADIST_EMULATE_LAZY", 0, 0, 1) != 0;
  config.leaks = number("TORCH_LLM_DATADIST_EMULATE_LEAKS", 0, 0, 1) != 0;
  config.stacks = number("TORCH_LLM_DATADIST_EMULATE_STACKS", 0, 0, 1) != 0;
  config.simulated_time = is_time_simulated();
  constexpr const char* kSeed = "TORCH_LLM_DATADIST_EMULATE_SEED";
  if (given(kSeed) != nullptr) config.seed = number(kSeed, 0);
  config.task_delay_us = number("TORCH_LLM_DATADIST_EMULATE_TASK_DELAY_US", 0);
  constexpr const char* kCopyEngines = "TORCH_LLM_DATADIST_EMULATE_COPY_ENGINES";
  if (given(kCopyEngines) != nullptr) config.copy_engines = number(kCopyEngines, 0, 0, CopyEngines::kMost);
  config.bandwidth[0] = number("TORCH_LLM_DATADIST_EMULATE_BANDWIDTH_H2D", 0);
  config.bandwidth[1] = number("TORCH_LLM_DATADIST_EMULATE_BANDWIDTH_D2H", 0);
  config.bandwidth[2] = number("TORCH_LLM_DATADIST_EMULATE_BANDWIDTH_D2D", 0);
  config.bandwidth[3] = number("TORCH_LLM_DATADIST_EMULATE_BANDWIDTH_PEER", 0);
  constexpr const char* kHost = "TORCH_LLM_DATADIST_EMULATE_HOST";
  if (const char* host = given(kHost)) config.host = host;
  if (config.host.size() >= Ledger::kMostHost) give_up(kHost, config.host.c_str(), "at most 63 characters");
  config.super_pod = number("TORCH_LLM_DATADIST_EMULATE_SUPER_POD", 0, 0, INT32_MAX);
  const uint64_t devices = number("TORCH_LLM_DATADIST_EMULATE_DEVICES", 8, 1, Device::kMaxDevices);
  config.physical_devices = visible_devices(static_cast<int32_t>(devices));
  return config;
}

}  // namespace emu
