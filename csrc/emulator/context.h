#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "emulator/acl_headers.h"
#include "emulator/fault_block.h"
#include "emulator/signal.h"

namespace emu {

class Device;
class HostCaller;
class Stream;

// Streams that fail together. The plugin's links rely on one rule: what happens in a context stays in it.
class Context : public std::enable_shared_from_this<Context> {
 public:
  // A user's host function that never returns must not keep a process from exiting.
  static constexpr auto kPatience = std::chrono::seconds(5);

  static std::shared_ptr<Context> create(Device& device, bool primary);
  ~Context();

  std::shared_ptr<Stream> add_stream(uint32_t priority, uint32_t flags);
  void remove_stream(const std::shared_ptr<Stream>& stream);
  // The stream meant by a handle: null is the default stream. Throws for a dead handle (107017) and for a
  // stream of another context (107003).
  std::shared_ptr<Stream> stream(aclrtStream handle);

  // A task failed on a stream with STOP_ON_FAILURE: no stream of this context runs or takes anything more.
  void stop(aclError code, const std::string& why);
  // Why nothing runs: that, or the lost device. ACL_SUCCESS when all is well.
  aclError failure() const {
    if (const aclError code = failure_.load(); code != ACL_SUCCESS) [[unlikely]]
      return code;
    return is_armed(bit(Fault::Lose)) ? lost() : ACL_SUCCESS;
  }
  // Why nothing is taken. A lost device takes work until somebody asked how it goes.
  aclError refusal() const;
  std::string failure_message() const;

  // Waits for all streams of this context; throws what the first failing one says.
  void synchronize(int32_t timeout_ms);
  // Ends all streams without running what is queued, and waits until what runs has ended. Idempotent.
  void destroy(Deadline deadline = Clock::now() + kPatience);
  bool destroyed() const { return destroyed_.load(std::memory_order_relaxed); }
  std::vector<std::shared_ptr<Stream>> streams() const;

  Device& device;
  const bool primary;
  aclrtContext handle = nullptr;
  const std::shared_ptr<HostCaller> host_functions;

 private:
  aclError lost() const;
  void give_back_stream();
  Context(Device& device, bool primary);

  mutable std::mutex mutex_;
  std::vector<std::shared_ptr<Stream>> streams_;
  std::shared_ptr<Stream> default_stream_;
  std::atomic<aclError> failure_{ACL_SUCCESS};
  std::string failure_message_;
  std::atomic<bool> destroyed_{false};
};

}  // namespace emu
