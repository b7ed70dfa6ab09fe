#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "emulator/lazy.h"
#include "emulator/signal.h"
#include "emulator/task.h"

namespace emu {

class Context;
class CopyRow;
class Graph;
class Interleaving;
class GroupUpdate;

// A first-in-first-out queue of tasks with a worker thread of its own, started by the first task.
//
//   state      tasks                      submit            synchronize
//   running    run in order               queued            waits; a mode-0 failure is told once
//   stopped    dropped (context failed)   the code          the code
//   halted     stay queued                queued; 107023    107023 (aclrtStreamStop)
//                                         where it would block
//   closed     dropped                    107017            107017
class Stream : public std::enable_shared_from_this<Stream> {
 public:
  static constexpr uint64_t kDepth = 2048;
  static constexpr uint64_t kRow = 4;  // so many more tasks behind a copy are taken for more copies

  Stream(std::shared_ptr<Context> context, uint32_t priority, uint32_t flags);
  ~Stream();

  // Returns before the task runs. Blocks while kDepth tasks are queued. While the stream is captured, the
  // task goes into the graph instead; while it updates a task group, into that. Returns the task's number in
  // the queue.
  uint64_t submit(std::shared_ptr<Task> task);
  // Returns when all that was submitted by now is done; throws Error when it is not going to be.
  void synchronize(Deadline deadline);
  // True when nothing is queued. Throws Error after a failure.
  bool idle();

  // Ends the running task, drops the queue; the stream stays usable. Who waits for it hears the code.
  void abort(aclError told = ACL_ERROR_RT_STREAM_ABORT);
  void halt();       // ends the running task and takes no other
  void close();      // as abort, for good; does not wait
  void interrupt();  // makes the running task look at stopping() now

  // Lazy mode (lazy.h): lets the tasks below this number run; all that are queued; those up to the last one
  // that writes the word (false: there is none).
  void need(uint64_t below);
  void need_all() { need(submitted_.load()); }
  bool need_writers_of(uintptr_t word);

  // For running tasks. True when the task should end at once.
  bool stopping() const;
  // Sleeps until the word no longer holds `expected`, the stream is interrupted, or the time is over.
  void park(const std::atomic<uint32_t>* word, uint32_t expected, std::chrono::nanoseconds timeout,
            std::chrono::nanoseconds grace = lazy::kGrace);
  // Lets time pass on the stream; false when it was cut short.
  bool pass_time(std::chrono::nanoseconds duration);
  void nap(std::chrono::nanoseconds duration);  // at most that long: an interrupt ends it
  void explain(std::string why);                // the running task failed, and this is why
  // For running tasks: whether at least so many are queued behind this one.
  bool has_behind(uint64_t tasks) const {
    return submitted_.load(std::memory_order_relaxed) > finished_.load(std::memory_order_relaxed) + tasks;
  }
  // Null when no seed for random interleaving is set.
  Interleaving* interleaving() const { return interleaving_.get(); }
  // The same for a seed that was set while the process runs (faults.h).
  Interleaving& interleaving_of(uint64_t seed);

  // For replays, which run tasks of a graph on this stream's worker or, if the stream is the graph's, on a
  // thread of the crew.
  aclError run_now(Task& task);
  void cut();   // what runs ends at once, and nothing more runs ...
  void mend();  // ... until this; the calls are counted
  std::string take_explanation();
  // The graph that this stream is a part of, for replays alone: no call may use it.
  void set_owner(std::weak_ptr<Graph> graph) { owner_ = std::move(graph), is_owned_ = true; }
  std::shared_ptr<Graph> owner() const { return owner_.lock(); }
  bool is_owned() const { return is_owned_; }
  // For the thread that runs host functions. Whether the running task is this one, off the queue and not part
  // of a replay. If the next one is a host function, too, or is after a few brief tasks, which then run here
  // and now, and nobody looks at single tasks, the running one is done and that one runs: it is the answer.
  bool runs(const Task& task) const { return taken_ == &task; }
  std::shared_ptr<Task> go_on_with_host_function();
  // The stream whose task the calling thread runs; null where it runs none.
  static Stream* running();
  static void set_running(Stream* stream);

  // The capture that this stream takes part in; null: none.
  std::shared_ptr<Graph> capture() const;
  void set_capture(std::shared_ptr<Graph> graph);
  bool is_capturing() const { return capturing_.load(std::memory_order_acquire); }
  // The update of a task group that this stream makes; null: none.
  std::shared_ptr<GroupUpdate> update() const;
  void set_update(std::shared_ptr<GroupUpdate> update);
  // Throws 107027, and spoils the capture, when the stream is in one: no query or wait is possible then.
  void refuse_while_capturing() const;

  bool is_default() const { return is_default_; }
  void make_default() { is_default_ = true; }
  Context& context() const { return *context_; }
  void wait_for_worker(Deadline deadline);

  const uint32_t priority;
  const uint32_t flags;
  const int32_t id;
  aclrtStream handle = nullptr;
  std::atomic<uint64_t> failure_mode{0};
  std::atomic<bool> failure_mode_set{false};
  std::atomic<uint32_t> overflow_check{0};
  std::atomic<uint32_t> custom_tag{0};
  std::atomic<uint32_t> cache_op_info{0};
  std::atomic<uint32_t> core_limits[2];
  std::atomic<uint64_t> report_thread{0};  // subscribed by aclrtSubscribeReport; 0: none

 private:
  void start_worker();
  void work();
  std::shared_ptr<Task> next();  // null: the stream is closed
  void run(Task& task);
  bool shows_single_tasks() const;
  size_t move_row(const Task& first, CopyRow& row);
  aclError run_watched(Task& task);
  void sleep_until_work();
  void let_flag_overtake();
  void check_takes_work() const;
  void nap(const std::atomic<uint32_t>* word, uint32_t expected, std::chrono::nanoseconds timeout);
  void finish(uint64_t tasks);
  // Whether the tasks below this number are done. If not, progress_ is raised when they are.
  bool is_done(uint64_t target);

  const std::shared_ptr<Context> context_;
  std::array<std::shared_ptr<Task>, kDepth> ring_;
  // Sequence numbers. Only the worker moves finished_, only submitters (under submit_mutex_) submitted_.
  std::atomic<uint64_t> submitted_{0};
  std::atomic<uint64_t> finished_{0};
  std::atomic<uint64_t> drop_before_{0};  // tasks below this number are aborted
  std::atomic<uint32_t> aborts_{0};
  std::atomic<aclError> abort_code_{ACL_ERROR_RT_STREAM_ABORT};  // what the latest of them tells
  std::atomic<uint64_t> needed_;                                 // tasks from this number on must not run yet
  struct Writer {
    uint64_t number;
    std::vector<Range> ranges;
  };
  std::mutex writers_mutex_;
  std::deque<Writer> writers_;                          // in lazy mode: queued tasks that write device memory
  bool note_writer(const Task& task, uint64_t number);  // true: somebody outside needs it
  std::mutex submit_mutex_;
  Signal progress_;                            // wake_at_ was reached, or the state changed
  std::atomic<uint64_t> wake_at_{UINT64_MAX};  // the least number that a thread waits for in finished_

  std::atomic<uint32_t> asleep_{0};  // futex word of the idle worker
  std::atomic<const std::atomic<uint32_t>*> parked_on_{nullptr};
  // Used by whoever runs the stream's tasks.
  const std::unique_ptr<Interleaving> interleaving_;
  std::unique_ptr<Interleaving> set_interleaving_;
  uint64_t set_seed_ = 0;
  const Task* taken_ = nullptr;                    // the running task, for who runs it
  std::optional<Clock::time_point> parked_since_;  // the running task, in lazy mode
  std::atomic<uint32_t> clock_word_{0};            // never changes: what pass_time() sleeps on
  std::atomic<bool> closed_{false};
  std::atomic<bool> halted_{false};
  bool worker_started_ = false;  // under submit_mutex_
  std::atomic<bool> worker_runs_{false};

  bool is_default_ = false;
  bool is_owned_ = false;
  std::weak_ptr<Graph> owner_;
  std::atomic<uint32_t> cuts_{0};
  bool divert(const std::shared_ptr<Task>& task);
  std::atomic<bool> diverted_{false};  // captured, or updating a task group
  std::atomic<bool> capturing_{false};
  mutable std::mutex capture_mutex_;
  std::shared_ptr<Graph> capture_;
  std::shared_ptr<GroupUpdate> update_;

  std::atomic<aclError> untold_failure_{ACL_SUCCESS};  // of mode 0
  mutable std::mutex why_mutex_;
  std::string why_;
};

}  // namespace emu
