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
namespace {

// While another stream waits for its turn.
constexpr int kMostInARow = 64;
constexpr auto kLookAgain = std::chrono::milliseconds(5);

}  // namespace

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

}  // namespace

class HostFunction final : public Task {
 public:
  HostFunction(std::shared_ptr<HostCaller> caller, aclrtHostFunc function, void* argument)
      : Task("aclrtLaunchHostFunc"), caller_(std::move(caller)), function_(function), argument_(argument) {}

  aclError run(Stream& stream) override { return caller_->call(stream, *this); }
  aclError invoke() const { return call_host_function(function_, argument_); }
  bool is_host_function() const override { return true; }
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

namespace {

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

// One function on its way. Who waits for it sleeps on `state`, at once: the host's thread may have to wait
// for a processor, and looking for its answer meanwhile would keep one from it.
struct HostCaller::Call {
  enum : uint32_t { kQueued = 0, kBegun = 1, kDone = 2, kState = 3, kSleeper = 4 };

  Stream& stream;
  const HostFunction& function;
  aclError result = ACL_SUCCESS;
  std::atomic<uint32_t> state{kQueued};

  void begin() { state.fetch_add(kBegun - kQueued); }
  // The call may go at once: only its address is used after that.
  void end() {
    if ((state.exchange(kDone) & kSleeper) != 0) futex_wake_all(&state);
  }
};

// The functions of a context that wait for their turn, in order.
struct HostCaller::Line {
  void serve() {
    while (Call* call = next()) {
      call->result = run(*call);
      call->end();
    }
  }

  // The function, and those behind it in its stream with little between: to hand each over would cost more
  // than most of them take. What ends with an error is left to the stream, as the task that runs now.
  aclError run(const Call& call) {
    if (call.stream.stopping()) return ACL_ERROR_RT_STREAM_ABORT;  // its worker did not get to say so
    aclError result = call.function.invoke();
    if (!call.stream.runs(call.function)) return result;
    for (int more = 0; result == ACL_SUCCESS; ++more) {
      if (more >= kMostInARow && waiting.load(std::memory_order_relaxed) != 0) break;
      const auto next = call.stream.go_on_with_host_function();
      if (next == nullptr) break;
      result = static_cast<const HostFunction&>(*next).invoke();
    }
    return result;
  }

  void add(Call& call) {
    std::lock_guard lock(mutex);
    calls.push_back(&call);
    waiting.store(calls.size());
    changed.notify_one();
  }

  // False when it began, or is over.
  bool remove(Call& call) {
    std::lock_guard lock(mutex);
    const size_t removed = std::erase(calls, &call);
    waiting.store(calls.size());
    return removed != 0;
  }

  void end() {
    std::lock_guard lock(mutex);
    ended = true;
    changed.notify_one();
  }

  std::mutex mutex;
  std::condition_variable changed;
  std::deque<Call*> calls;
  std::atomic<size_t> waiting{0};  // in `calls`
  bool ended = false;

 private:
  Call* next() {
    std::unique_lock lock(mutex);
    changed.wait(lock, [&] { return !calls.empty() || ended; });
    if (calls.empty()) return nullptr;
    Call* call = calls.front();
    calls.pop_front();
    waiting.store(calls.size());
    call->begin();
    return call;
  }
};

HostCaller::HostCaller() : line_(std::make_shared<Line>()) {}

HostCaller::~HostCaller() { line_->end(); }

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

aclError HostCaller::call(Stream& stream, const HostFunction& function) {
  Call call{stream, function};
  line_->add(call);
  for (;;) {
    const uint32_t seen = call.state.load(std::memory_order_acquire);
    const uint32_t state = seen & Call::kState;
    if (state == Call::kDone) return call.result;
    if (state == Call::kQueued && stream.stopping() && line_->remove(call)) return ACL_ERROR_RT_STREAM_ABORT;
    const uint32_t asleep = seen | Call::kSleeper;
    if (uint32_t now = seen; seen != asleep && !call.state.compare_exchange_strong(now, asleep)) continue;
    if (state == Call::kQueued) {
      stream.park(&call.state, asleep, kLookAgain);
    } else {
      // Whatever the stream is told meanwhile: the function still uses what its argument names.
      futex_wait(&call.state, asleep);
    }
  }
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
