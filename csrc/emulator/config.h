#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "emulator/profile.h"

namespace emu {

// Read from the environment once, when the process makes its first call.
struct Config {
  uint64_t device_memory = uint64_t{64} << 30;  // TORCH_LLM_DATADIST_EMULATE_DEVICE_MEMORY, bytes per device
  bool lazy = false;                            // TORCH_LLM_DATADIST_EMULATE_LAZY: 0 or 1, see lazy.h
  bool leaks = false;                           // TORCH_LLM_DATADIST_EMULATE_LEAKS: 0 or 1, see leaks.h
  bool stacks = false;                          // TORCH_LLM_DATADIST_EMULATE_STACKS: 0 or 1, see stack.h
  bool simulated_time = false;                  // TORCH_LLM_DATADIST_EMULATE_TIME: simulated or real
  std::optional<uint64_t> seed;                 // TORCH_LLM_DATADIST_EMULATE_SEED, see interleaving.h
  std::optional<uint64_t> copy_engines;         // TORCH_LLM_DATADIST_EMULATE_COPY_ENGINES, see copy_engines.h
  uint64_t task_delay_us = 0;                   // TORCH_LLM_DATADIST_EMULATE_TASK_DELAY_US
  uint64_t bandwidth[4] = {};                   // …_BANDWIDTH_{H2D,D2H,D2D,PEER}, bytes/s; 0: memory speed
  // Physical ids of the devices that this process sees, from TORCH_LLM_DATADIST_EMULATE_DEVICES (a count,
  // default 8) and ASCEND_RT_VISIBLE_DEVICES (a list of those).
  std::vector<int32_t> physical_devices;

  // Keys of memory reach processes of one host, fabric handles those of one SuperPod.
  std::string host;        // TORCH_LLM_DATADIST_EMULATE_HOST
  uint64_t super_pod = 0;  // TORCH_LLM_DATADIST_EMULATE_SUPER_POD

  Profile profile;

  static Config from_environment();
};

}  // namespace emu
