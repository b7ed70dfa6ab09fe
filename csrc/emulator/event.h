#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>

#include "emulator/acl_headers.h"
#include "emulator/facts.h"
#include "emulator/signal.h"

namespace emu {

class Device;
class Graph;
class IpcEvent;
class Stream;

// What a wait is for. It outlives its event, so an event may be destroyed right after a wait on it was
// queued.
struct Record : SyncPoint {
  enum : uint32_t { kPending = 0, kDone = 1, kLost = 2 };

  void settle(uint32_t how);
  // Lazy mode: where the record was queued, and that somebody needs it now.
  void queued(Stream& stream, uint64_t number);
  void need();
  // On a stream's worker: false when the stream was ended first, or the time (0: none) was over.
  bool wait_on(Stream& stream, Deadline deadline);
  // On a host thread: false when the deadline passed.
  bool wait_on_host(Deadline deadline);

  std::atomic<uint32_t> state{kPending};
  // How often it was reached: who waits by then goes on, also when a reset follows at once.
  std::atomic<uint32_t> times_done{0};
  std::atomic<uint32_t> changes{0};  // what waiters sleep on
  std::atomic<uint32_t> waiters{0};
  std::atomic<uint64_t> time_us{0};
  std::atomic<aclError> lost_code{ACL_SUCCESS};  // why the recording stream will never get there

 private:
  std::mutex mutex_;
  std::weak_ptr<Stream> stream_;
  uint64_t number_ = 0;
};

// Both families of events behind one handle. `ex`: re-recordable, a wait binds to the latest record at the
// time of the call. Otherwise a hardware event id: one state, set by a record, cleared only by a reset.
class Event {
 public:
  static constexpr uint32_t kAllFlags =
      ACL_EVENT_SYNC | ACL_EVENT_CAPTURE_STREAM_PROGRESS | ACL_EVENT_TIME_LINE;

  Event(Device& device, bool ex, uint32_t flags, std::shared_ptr<IpcEvent> ipc = nullptr);
  ~Event();

  void record(Stream& stream);
  void reset(Stream& stream);
  void make_wait(Stream& stream, uint32_t timeout_s);
  std::shared_ptr<Record> captured_record() const;
  std::shared_ptr<Graph> open_capture() const;  // null when the latest record is not part of one
  // The record that a query or a host wait is about; null when an Ex event was never recorded.
  std::shared_ptr<Record> latest() const;
  // Made to cross the border of graphs: recorded, waited for and reset by tasks, in a capture as outside of
  // it.
  bool is_external() const { return (flags & ACL_EVENT_EXTERNAL) != 0; }
  // Throws 107028, and spoils the capture, when the latest record is part of an open one.
  void refuse_while_captured() const;
  bool waits_are_done() const { return waits_finished_->load() == waits_queued_.load(); }

  Device& device;
  aclrtEvent handle = nullptr;
  const bool ex;
  const uint32_t flags;
  const uint32_t id;
  const std::shared_ptr<IpcEvent> ipc;  // shared between processes: all that follows is there instead

 private:
  [[noreturn]] void refuse_outside_of(Graph& graph, const Stream& stream) const;

  mutable std::mutex mutex_;
  std::shared_ptr<Record> latest_;
  std::weak_ptr<Graph> captured_in_;  // the capture that holds the latest record, and that record
  std::shared_ptr<Record> captured_;
  std::atomic<uint64_t> waits_queued_{0};
  std::shared_ptr<std::atomic<uint64_t>> waits_finished_;
};

}  // namespace emu
