#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <vector>

#include "emulator/acl_headers.h"

namespace emu {

class Context;
class Device;
class Graph;

// The captures that are open in this process, for the calls that are forbidden meanwhile.
class Captures {
 public:
  void open(const std::shared_ptr<Graph>& graph);
  void close(const Graph& graph);
  // The context ends, and with it what is captured in it.
  void abandon(const Context& context);

  // Throws `code` when the calling thread may not make an unsafe call now, and spoils the captures that
  // forbid it.
  void check_unsafe(aclError code) const;
  // Throws 107027, and spoils the captures of that device, when there are any: no mode and no thread may wait
  // for a device with a stream that is captured.
  void check_device_wait(const Device& device) const;

 private:
  std::vector<std::shared_ptr<Graph>> all() const;

  mutable std::mutex mutex_;
  std::vector<std::shared_ptr<Graph>> open_;
  std::atomic<size_t> count_{0};
};

}  // namespace emu
