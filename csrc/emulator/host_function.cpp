// Host functions in stream order: aclrtLaunchHostFunc, and the older callbacks that a thread of the program
// serves.

#include "emulator/host_function.h"

#include <system_error>

#include "emulator/context.h"
#include "emulator/emu.h"
#include "emulator/entry.h"
#include "emulator/runtime.h"
#include "emulator/stream.h"
#include "emulator/thread.h"

namespace emu {

void Reports::subscribe(uint64_t thread, Stream& stream) {
  std::lock_guard lock(mutex_);
  if (mailboxes_.size() >= kMaxThreads && !mailboxes_.contains(thread)) {
    fail(ACL_ERROR_RT_THREAD_SUBSCRIBE, "%zu threads are subscribed, the most that there may be",
         kMaxThreads);
  }
  uint64_t none = 0;
  if (!stream.report_thread.compare_exchange_strong(none, thread)) {
    fail(ACL_ERROR_RT_STREAM_SUBSCRIBE, "stream %d has a subscriber already", stream.id);
  }
  ++mailboxes_[thread].streams;
}

void Reports::unsubscribe(uint64_t thread, Stream& stream) {
  std::lock_guard lock(mutex_);
  uint64_t expected = thread;
  if (!stream.report_thread.compare_exchange_strong(expected, 0)) {
    fail(ACL_ERROR_RT_THREAD_SUBSCRIBE, "thread %lu did not subscribe to stream %d", thread, stream.id);
  }
  auto it = mailboxes_.find(thread);
  if (it != mailboxes_.end() && --it->second.streams == 0) mailboxes_.erase(it);
  posted_.notify_all();
}

bool Reports::post(uint64_t thread, std::shared_ptr<Report> report) {
  std::lock_guard lock(mutex_);
  auto it = mailboxes_.find(thread);
  if (it == mailboxes_.end()) return false;
  it->second.waiting.push_back(std::move(report));
  posted_.notify_all();
  return true;
}

std::shared_ptr<Report> Reports::take(uint64_t thread, Deadline deadline) {
  std::unique_lock lock(mutex_);
  for (;;) {
    auto it = mailboxes_.find(thread);
    if (it == mailboxes_.end()) {
      fail(ACL_ERROR_RT_THREAD_SUBSCRIBE, "this thread is not subscribed to any stream");
    }
    if (!it->second.waiting.empty()) {
      auto report = std::move(it->second.waiting.front());
      it->second.waiting.pop_front();
      return report;
    }
    if (!deadline) {
      posted_.wait(lock);
    } else if (posted_.wait_until(lock, *deadline) == std::cv_status::timeout) {
      return nullptr;
    }
  }
}

namespace {

// While a host function runs, its thread may not submit, wait or allocate.
class InHostFunction {
 public:
  InHostFunction() : before_(Thread::self().in_host_function) { Thread::self().in_host_function = true; }
  ~InHostFunction() { Thread::self().in_host_function = before_; }

 private:
  const bool before_;
};

class HostFunction final : public Task {
 public:
  HostFunction(std::shared_ptr<HostCaller> caller, aclrtHostFunc function, void* argument)
      : Task("aclrtLaunchHostFunc"), caller_(std::move(caller)), function_(function), argument_(argument) {}

  aclError run(Stream&) override { return caller_->call(function_, argument_); }
  void describe(TaskFacts& facts) const override {
    facts.name = what;
    facts.kind = TaskKind::HostFunction;
  }
  bool may_be_updated() const override { return true; }

 private:
  const std::shared_ptr<HostCaller> caller_;
  const aclrtHostFunc function_;
  void* const argument_;
};

aclError serve(Stream& stream, uint64_t thread, const std::shared_ptr<Report>& report, bool blocks) {
  if (!Runtime::get().reports->post(thread, report)) {
    stream.explain("nobody is subscribed to the stream's callbacks any more");
    return ACL_ERROR_RT_STREAM_NO_CB_REG;
  }
  while (blocks && report->done.load() == 0 && !stream.stopping()) {
    stream.park(&report->done, 0, std::chrono::milliseconds(5));
  }
  return ACL_SUCCESS;
}

}  // namespace

struct HostCaller::Line {
  struct Call {
    aclrtHostFunc function;
    void* argument;
    aclError result = ACL_SUCCESS;
    bool done = false;
  };

  void serve() {
    std::unique_lock lock(mutex);
    for (;;) {
      changed.wait(lock, [&] { return !calls.empty() || ended; });
      if (calls.empty()) return;
      Call& call = *calls.front();
      lock.unlock();
      const aclError result = call_host_function(call.function, call.argument);
      lock.lock();
      call.result = result;
      call.done = true;
      calls.pop_front();
      changed.notify_all();
    }
  }

  std::mutex mutex;
  std::condition_variable changed;
  std::deque<Call*> calls;
  bool ended = false;
};

HostCaller::HostCaller() : line_(std::make_shared<Line>()) {}

HostCaller::~HostCaller() {
  std::lock_guard lock(line_->mutex);
  line_->ended = true;
  line_->changed.notify_all();
}

void HostCaller::start() {
  std::lock_guard lock(line_->mutex);
  if (started_) return;
  try {
    start_thread("acl-host-func", [line = line_] { line->serve(); });
  } catch (const std::system_error& error) {
    fail(ACL_ERROR_RT_RESOURCE_ALLOC_FAIL, "no thread for host functions: %s", error.what());
  }
  started_ = true;
}

aclError HostCaller::call(aclrtHostFunc function, void* argument) {
  Line::Call call{function, argument};
  std::unique_lock lock(line_->mutex);
  line_->calls.push_back(&call);
  line_->changed.notify_all();
  // The caller's stream may be told to stop meanwhile; the function still uses what its argument names.
  line_->changed.wait(lock, [&] { return call.done; });
  return call.result;
}

aclError call_host_function(aclrtHostFunc function, void* argument) {
  InHostFunction marked;
  Thread::self().host_function_result = ACL_SUCCESS;
  function(argument);
  return Thread::self().host_function_result;
}

}  // namespace emu

using namespace emu;

int emuFailRunningTask(int code) {
  Thread& self = Thread::self();
  if (!self.in_host_function) return ACL_ERROR_INVALID_PARAM;
  self.host_function_result = code;
  return ACL_SUCCESS;
}

aclError aclrtLaunchHostFunc(aclrtStream stream, aclrtHostFunc fn, void* args) {
  return ENTER(aclrtLaunchHostFunc, {
    not_null(reinterpret_cast<void*>(fn), "fn");
    auto on = Thread::self().context->stream(stream);
    if (on->report_thread.load() != 0) {
      fail(ACL_ERROR_RT_STREAM_SUBSCRIBE,
           "stream %d has a subscriber for callbacks; the two kinds do not mix", on->id);
    }
    // By the host, and not when the function's turn comes: the host may be frozen then.
    const auto& caller = on->context().host_functions;
    caller->start();
    on->submit(std::make_shared<HostFunction>(caller, fn, args));
    return ACL_SUCCESS;
  });
}

aclError aclrtLaunchCallback(aclrtCallback fn, void* userData, aclrtCallbackBlockType blockType,
                             aclrtStream stream) {
  return ENTER(aclrtLaunchCallback, {
    not_null(reinterpret_cast<void*>(fn), "fn");
    if (blockType != ACL_CALLBACK_NO_BLOCK && blockType != ACL_CALLBACK_BLOCK) {
      fail(ACL_ERROR_RT_PARAM_INVALID, "block type %d is neither 0 nor 1", blockType);
    }
    auto on = Thread::self().context->stream(stream);
    // Taken now: a captured callback runs on another stream, and still goes to this stream's subscriber.
    const uint64_t thread = on->report_thread.load();
    if (thread == 0) {
      fail(ACL_ERROR_RT_STREAM_NO_CB_REG, "no thread subscribed to stream %d (aclrtSubscribeReport)", on->id);
    }
    auto body = [fn, userData, blockType, thread](Stream& runs) -> aclError {
      auto report = std::make_shared<Report>();
      report->function = fn;
      report->argument = userData;
      return serve(runs, thread, report, blockType == ACL_CALLBACK_BLOCK);
    };
    on->submit(make_task("aclrtLaunchCallback", body, of_kind(TaskKind::HostFunction)));
    return ACL_SUCCESS;
  });
}

aclError aclrtSubscribeReport(uint64_t threadId, aclrtStream stream) {
  return ENTER(aclrtSubscribeReport, {
    if (threadId == 0) fail(ACL_ERROR_RT_PARAM_INVALID, "thread id is 0");
    Runtime::get().reports->subscribe(threadId, *Thread::self().context->stream(stream));
    return ACL_SUCCESS;
  });
}

aclError aclrtUnSubscribeReport(uint64_t threadId, aclrtStream stream) {
  return ENTER(aclrtUnSubscribeReport, {
    Runtime::get().reports->unsubscribe(threadId, *Thread::self().context->stream(stream));
    return ACL_SUCCESS;
  });
}

aclError aclrtProcessReport(int32_t timeout) {
  return ENTER(aclrtProcessReport, {
    if (timeout < -1 || timeout == 0)
      fail(ACL_ERROR_RT_PARAM_INVALID, "timeout %d ms; -1 waits for ever", timeout);
    auto report = Runtime::get().reports->take(Thread::self().id, deadline_in_ms(timeout));
    if (report == nullptr) fail(ACL_ERROR_RT_REPORT_TIMEOUT, "no callback came in %d ms", timeout);
    {
      InHostFunction marked;
      report->function(report->argument);
    }
    report->done.store(1);
    futex_wake_all(&report->done);
    return ACL_SUCCESS;
  });
}
