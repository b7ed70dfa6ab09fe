#pragma once

#include <condition_variable>
#include <deque>
#include <map>
#include <memory>
#include <mutex>

#include "emulator/acl_headers.h"
#include "emulator/signal.h"

namespace emu {

class HostFunction;
class Stream;

// The thread that runs a context's host functions, one at a time. It belongs to the host: frozen with it, and
// no part of the device as the streams' threads are.
class HostCaller {
 public:
  HostCaller();
  ~HostCaller();
  // Makes the thread, unless it is there. Throws 207005.
  void start();
  // Returns when the function has; what its task ends with. After start(). 107023 when the stream is to stop
  // before the function's turn came: then it is never called.
  aclError call(Stream& stream, const HostFunction& function);

 private:
  struct Call;
  struct Line;
  const std::shared_ptr<Line> line_;
  bool started_ = false;  // under the line's mutex
};

// Runs it here; the code that its task ends with (emuFailRunningTask).
aclError call_host_function(aclrtHostFunc function, void* argument);

// One launched callback on its way to the thread that subscribed for the stream.
struct Report {
  aclrtCallback function;
  void* argument;
  std::atomic<uint32_t> done{0};
};

// The mailboxes of threads that loop in aclrtProcessReport.
class Reports {
 public:
  static constexpr size_t kMaxThreads = 1024;

  void subscribe(uint64_t thread, Stream& stream);
  void unsubscribe(uint64_t thread, Stream& stream);
  bool post(uint64_t thread, std::shared_ptr<Report> report);  // false: nobody is subscribed
  // The next one for the calling thread; null when none came in time. Throws 107012 when it did not
  // subscribe.
  std::shared_ptr<Report> take(uint64_t thread, Deadline deadline);

 private:
  struct Mailbox {
    int streams = 0;
    std::deque<std::shared_ptr<Report>> waiting;
  };

  std::mutex mutex_;
  std::condition_variable posted_;
  std::map<uint64_t, Mailbox> mailboxes_;
};

}  // namespace emu
