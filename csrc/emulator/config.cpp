#include "emulator/config.h"

#include <cstdio>
#include <cstdlib>
#include <string>

namespace emu {
namespace {

uint64_t number(const char* name, uint64_t otherwise) {
  const char* given = std::getenv(name);
  if (given == nullptr || *given == '\0') return otherwise;
  char* end = nullptr;
  const unsigned long long value = std::strtoull(given, &end, 10);
  if (*end != '\0') {
    std::fprintf(stderr, "emulated Ascend runtime: %s=%s is not a number; using %llu\n", name, given,
                 static_cast<unsigned long long>(otherwise));
    return otherwise;
  }
  return value;
}

// As the real runtime reads the list: it ends at the first entry that names no device.
std::vector<int32_t> visible_devices(int32_t count) {
  std::vector<int32_t> all(count);
  for (int32_t i = 0; i < count; ++i) all[i] = i;
  const char* given = std::getenv("ASCEND_RT_VISIBLE_DEVICES");
  if (given == nullptr || *given == '\0') return all;
  std::vector<int32_t> visible;
  for (const char* at = given; *at != '\0';) {
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
  const char* given = std::getenv(kTime);
  const std::string value = given == nullptr || *given == '\0' ? "real" : given;
  if (value != "real" && value != "simulated") {
    std::fprintf(stderr, "emulated Ascend runtime: %s=%s is neither real nor simulated; it is real\n", kTime,
                 given);
  }
  return value == "simulated";
}

}  // namespace

Config Config::from_environment() {
  Config config;
  config.profile = Profile::from_environment();
  config.device_memory = number("TORCH_LLM_DATADIST_EMULATE_DEVICE_MEMORY", config.device_memory);
  config.lazy = number("TORCH_LLM_DATADIST_EMULATE_LAZY", 0) != 0;
  config.leaks = number("TORCH_LLM_DATADIST_EMULATE_LEAKS", 0) != 0;
  config.stacks = number("TORCH_LLM_DATADIST_EMULATE_STACKS", 0) != 0;
  config.simulated_time = is_time_simulated();
  constexpr const char* kSeed = "TORCH_LLM_DATADIST_EMULATE_SEED";
  if (const char* given = std::getenv(kSeed); given != nullptr && *given != '\0')
    config.seed = number(kSeed, 0);
  config.task_delay_us = number("TORCH_LLM_DATADIST_EMULATE_TASK_DELAY_US", 0);
  config.bandwidth[0] = number("TORCH_LLM_DATADIST_EMULATE_BANDWIDTH_H2D", 0);
  config.bandwidth[1] = number("TORCH_LLM_DATADIST_EMULATE_BANDWIDTH_D2H", 0);
  config.bandwidth[2] = number("TORCH_LLM_DATADIST_EMULATE_BANDWIDTH_D2D", 0);
  config.bandwidth[3] = number("TORCH_LLM_DATADIST_EMULATE_BANDWIDTH_PEER", 0);
  const uint64_t devices = number("TORCH_LLM_DATADIST_EMULATE_DEVICES", 8);
  config.physical_devices = visible_devices(static_cast<int32_t>(devices < 64 ? devices : 64));
  return config;
}

}  // namespace emu
