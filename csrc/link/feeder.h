// A thread that owns a context and feeds the streams in it, so that a full queue or a refused call never
// meets a torch_npu thread. It keeps each stream's queue below its depth (2048, where a submit would block):
// one lane that waits for its layers does not hold up the others.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "link/lane.h"
#include "link/stream_budget.h"
#include "link/tick.h"
#include "transport/transport.h"

namespace datadist {

class Feeder {
 public:
  struct Idle {
    std::chrono::milliseconds after{5000};  // without work: its streams go back
    std::function<void()> then;             // on its thread, with nothing queued
  };
  Feeder(int device, acl::OnFailure mode, WordPool* words, Transport* transport, StreamBudget* budget,
         Idle idle);
  ~Feeder();  // stops

  enum class Budget { kBound, kExempt };
  // A new lane needs words. The feeding thread, and who holds a lock that it takes, do not wait for the
  // allocator: it may wait for what is fed.
  enum class Words { kAny, kReserved };
  // A lane without work, new or left by someone else. nullptr when `max_lanes` are taken, the reserve of
  // words is, or the budget is spent; who is exempt from that is counted all the same.
  std::shared_ptr<Lane> take_lane(size_t max_lanes, Budget budget, Words from = Words::kAny);
  void give_back_lane(std::shared_ptr<Lane> lane);
  void submit(const std::shared_ptr<Lane>& lane, std::unique_ptr<Program> program);
  // The same, for a caller who sees to it that somebody calls `wake`: that costs microseconds, and ops leave
  // it to their handlers, which run on a thread of torch_npu's. Until then the thread may sleep until the
  // next tick.
  void leave(const std::shared_ptr<Lane>& lane, std::unique_ptr<Program> program);
  // Which finds its lane then. Not on the feeding thread.
  void leave(const std::shared_ptr<Boarding>& boarding);
  void wake();
  // Destroys the lane's stream with all that is queued on it; programs that were not submitted end with
  // LLM_NOT_YET_LINK.
  void drop_lane(const std::shared_ptr<Lane>& lane);
  // Watchdog, once per tick, mirrors fresh.
  void tick();
  // 0, or the code of the task failure that stopped this context.
  aclError failure() const { return failure_.load(std::memory_order_acquire); }
  bool is_idle() const;
  void request_stop();
  bool has_stopped() const { return has_stopped_.load(std::memory_order_acquire); }
  void stop();  // idempotent; ends what is left, destroys all streams and the context, joins

 private:
  void run();
  void let_board();
  aclError look_for_failure(Lane& lane);  // of a task of its stream
  bool feed(Lane& lane);
  void release_stream(Lane& lane);
  static bool next_step(Lane& lane, Program& program, Step* step);
  bool submit_step(Lane& lane, const Step& step, std::string* what, aclError* code);
  bool copy_rows(Lane& lane, const Step& step, aclError* code);
  aclError launch(Lane& lane, const Step& step);
  aclError mark(Lane& lane);
  aclError settle(Lane& lane);
  void give_up(Lane& lane, int64_t code, const std::string& why);
  void end_if_drained(Lane& lane, bool must_end);

  const int device_;
  const acl::OnFailure mode_;
  WordPool* const words_;
  Transport* const transport_;
  StreamBudget* const budget_;
  const Idle idle_after_;
  std::unique_ptr<acl::Context> context_;
  bool takes_rows_ = true;  // until the runtime refuses a copy of rows

  Arrivals<Boarding> boarding_{&Boarding::at_feeder_};
  std::atomic<bool> has_left_{false};  // nobody boards on its thread any more
  mutable std::mutex mutex_;
  std::condition_variable wake_;
  bool must_stop_ = false;
  bool must_look_ = false;
  std::vector<std::shared_ptr<Lane>> lanes_;
  std::vector<std::shared_ptr<Lane>> idle_;
  std::atomic<aclError> failure_{0};
  std::atomic<bool> has_stopped_{false};
  std::atomic<bool> holds_streams_{false};
  std::atomic<bool> may_release_{false};
  Clock::time_point worked_at_ = Clock::now();
  std::mutex join_mutex_;
  std::thread thread_;
};

}  // namespace datadist
