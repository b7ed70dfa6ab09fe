#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>

#include "emulator/acl_headers.h"
#include "emulator/facts.h"

namespace emu {

class Block;
class Stream;
class Task;

// Watches a process's calls, tasks and waits: the trace, the race checker and whoever else wants to know. All
// methods may be called from any thread, from several at once. They must not call ACL or wait for a task.
class Observer {
 public:
  virtual ~Observer() = default;

  // A call of an entry point, on the thread that makes it.
  virtual void call_begun(const char* /*name*/) {}
  virtual void call_ended(const char* /*name*/, aclError) {}

  // A task's way. Numbers count per stream from 0, without gaps. Each submitted task is taken off its queue
  // in order, either to run or dropped.
  virtual void submitted(Stream&, const Task&, uint64_t /*number*/) {}
  virtual void taken(Stream&, const Task&, uint64_t /*number*/) {}
  virtual void dropped(Stream&, const Task&, uint64_t /*number*/) {}
  // On the worker of the stream. Tasks of a graph are begun and ended inside the replay that is running
  // there.
  virtual void begun(Stream&, const Task&, const TaskFacts&) {}
  virtual void ended(Stream&, const Task&, const TaskFacts&, aclError) {}

  // The running task lets those go on who wait for the point, or goes on because of it, other than by the
  // facts of a task.
  virtual void released(SyncPoint&, Stream&) {}
  virtual void acquired(SyncPoint&, Stream&) {}
  // What was signalled at the point before is over: the next replay begins.
  virtual void restarted(SyncPoint&) {}

  // The calling thread knows that what ran on the stream so far has ended: a wait returned, a query said so.
  virtual void host_waited(Stream&) {}
  // It knows that the point was reached.
  virtual void host_saw(SyncPoint&) {}
  // It works on memory itself: blocking copies and fills, compute without a stream.
  virtual void host_begun(const TaskFacts&) {}
  virtual void host_ended(const TaskFacts&) {}

  virtual void allocated(const Block&) {}
  virtual void freed(const Block&) {}
  virtual void host_memory_forgotten(uintptr_t /*base*/, size_t /*size*/) {}
  virtual void stream_gone(Stream&) {}
  virtual void found_race(const std::string& /*report*/) {}

  virtual void flush() {}  // the process is about to end
};

namespace observing {
inline std::atomic<Observer*> one{nullptr};
}  // namespace observing

// Who watches; null: nobody, which is all that a plain run pays for.
inline Observer* observer() { return observing::one.load(std::memory_order_acquire); }

// Around work that the calling thread does on memory; `describe` is a callable void(TaskFacts&).
class HostWork {
 public:
  template <class Describe>
  explicit HostWork(Describe&& describe) : watching_(observer()) {
    if (watching_ == nullptr) [[likely]]
      return;
    describe(facts_);
    watching_->host_begun(facts_);
  }
  ~HostWork() {
    if (watching_ != nullptr) watching_->host_ended(facts_);
  }
  HostWork(const HostWork&) = delete;
  HostWork& operator=(const HostWork&) = delete;

 private:
  Observer* const watching_;
  TaskFacts facts_;
};

// From now on this one watches, too. For good: a thread may be inside it at any time.
void add_observer(std::unique_ptr<Observer> observer);

// Those that the environment asks for.
void add_observers_of_environment();

}  // namespace emu
