#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "emulator/acl_headers.h"
#include "emulator/device_error.h"

namespace emu {

class Context;

// One emulated NPU as this process sees it.
class Device {
 public:
  static constexpr int32_t kMaxDevices = 64;  // each has a bit in masks
  static constexpr int32_t kMaxStreams = 1984;
  static constexpr int32_t kMaxEvents = 65536;
  static constexpr uint32_t kCubeCores = 24;
  static constexpr uint32_t kVectorCores = 48;

  Device(int32_t id, int32_t physical_id, size_t memory) : id(id), physical_id(physical_id), memory(memory) {}

  // Counts a set; makes the primary context on the first.
  std::shared_ptr<Context> set();
  // Takes one set back, or all; the last one ends the primary context.
  void reset(bool all);
  std::shared_ptr<Context> primary();

  // Books device memory against the limit; throws Error when there is not enough.
  void book(size_t bytes);
  void unbook(size_t bytes);
  // For physical memory that other processes may have imported: it counts until the last of them let go of
  // it, too. Takes the descriptor.
  void unbook_once_unheld(int fd, size_t bytes);
  // Bytes that count against the limit now.
  size_t in_use();

  bool may_access(int32_t peer) const { return peer == id || (peers.load() >> peer & 1) != 0; }

  const int32_t id;
  const int32_t physical_id;
  const size_t memory;
  std::atomic<size_t> used{0};
  std::atomic<size_t> peak{0};
  std::atomic<uint64_t> peers{0};  // bit n: this device may touch memory of device n
  std::atomic<int32_t> streams{0};
  std::atomic<int32_t> events{0};  // hardware event ids in use
  DeviceError error;
  std::atomic<bool> loss_told{false};  // a fault lost the device, and the program knows
  std::atomic<int32_t> saturation_mode{ACL_RT_OVERFLOW_MODE_INFNAN};
  std::atomic<uint32_t> core_limits[2] = {kCubeCores, kVectorCores};

 private:
  struct HeldElsewhere {
    int fd;
    size_t bytes;
  };

  void come_back();
  void unbook_what_nobody_holds();

  std::mutex mutex_;
  std::mutex held_mutex_;
  std::vector<HeldElsewhere> held_;
  std::shared_ptr<Context> primary_;
  int64_t sets_ = 0;
};

}  // namespace emu
