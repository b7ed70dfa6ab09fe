// What one process keeps per device: the words and pages that streams and peers write, a context for streams
// that touch local memory only, and the watchdog — a thread that never takes the GIL, owns every deadline,
// and is the only one that looks at the words.
#pragma once

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "link/arrivals.h"
#include "link/feeder.h"
#include "link/page.h"
#include "link/tick.h"
#include "link/words.h"

namespace datadist {

class Binding;
class Link;
class StreamMark;
class Transfer;

class Engine : public std::enable_shared_from_this<Engine> {
 public:
  // The engine of a device; made on first use.
  static std::shared_ptr<Engine> of(int device);
  // Stops every engine: joins the watchdogs and frees their streams. Before torch_npu's own shutdown.
  static void stop_all();

  explicit Engine(int device);
  ~Engine();

  int device() const { return device_; }
  WordPool& words() { return words_; }
  PageArena& pages() { return pages_; }
  Feeder& local_feeder() { return local_feeder_; }
  StreamBudget& streams() { return streams_; }
  char* failed_status() const { return failed_status_.address; }  // holds LLM_FAILED for ever

  void watch(std::shared_ptr<Link> link);
  void watch(const std::shared_ptr<Transfer>& transfer);
  void watch(std::shared_ptr<Binding> binding);
  void watch(std::shared_ptr<StreamMark> mark);

  // Transfers that failed and still have something queued: counted, so that nobody looks for none.
  void doubt_begins() { ++doubts_; }
  void doubt_ends() { --doubts_; }
  bool has_doubts() const { return doubts_ > 0; }
  std::vector<std::shared_ptr<Transfer>> transfers();

  // Makes the watchdog look at once, and at every link, instead of at its next tick.
  void wake();
  // Makes it look at what is busy within a busy tick, without a thread's wake-up in the caller's way.
  void wake_soon();
  // Waits for the watchdog's next look at all; false when the deadline passed before.
  bool wait_for_tick(Clock::time_point deadline);
  // The watchdog has had no look at its device for a while.
  bool is_blind() const { return is_blind_.load(std::memory_order_acquire); }
  void stop();
  bool has_stopped();

 private:
  struct Streams;

  DeviceMemory allocate_filled(size_t bytes, int byte);
  DeviceMemory filled(DeviceMemory memory, size_t bytes, int byte) const;
  void run();
  using Links = std::vector<std::shared_ptr<Link>>;

  bool tick(const Tick& tick, const Links& links);  // true while something is in flight
  bool look(const Streams& streams);
  Links links_to_look_at(bool at_all);
  void take_arriving();  // with the lock
  bool sleep(bool is_busy);
  void extend_deadlines(Clock::duration gap);
  void abandon(const std::string& error);
  static void watch_processes(const Links& links);

  const int device_;
  WordPool words_;
  PageArena pages_;
  const DeviceMemory failed_status_;
  const DeviceMemory mail_word_;
  StreamBudget streams_;
  Feeder local_feeder_;
  int wake_fd_;
  int timer_fd_;
  std::atomic<bool> timer_is_set_{false};
  std::atomic<int> doubts_{0};
  std::atomic<bool> is_blind_{false};
  bool is_woken_ = false;              // the watchdog's own
  Clock::time_point looked_at_all_{};  // likewise

  // What ops have begun since the last look: they take no lock that links share.
  Arrivals<Transfer> arriving_;
  std::mutex mutex_;
  std::condition_variable ticked_;
  uint64_t ticks_ = 0;
  int waiting_ = 0;  // callers in wait_for_tick
  std::atomic<bool> must_stop_{false};
  Links links_;
  std::vector<std::shared_ptr<Transfer>> transfers_;
  std::vector<std::shared_ptr<Binding>> bindings_;
  std::vector<std::shared_ptr<StreamMark>> marks_;
  std::thread thread_;
};

}  // namespace datadist
