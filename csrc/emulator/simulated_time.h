#pragma once

#include <array>
#include <deque>
#include <map>
#include <mutex>
#include <unordered_map>

#include "emulator/busy_times.h"
#include "emulator/cost_model.h"
#include "emulator/observer.h"

namespace emu {

class Device;
struct Config;

// Simulated time (TORCH_LLM_DATADIST_EMULATE_TIME=simulated): what the run would take on the product,
// computed while the tasks themselves run as fast as they can.
//
//   a task starts    when the host had submitted it, the task before it in its stream has ended, and what it
//                    waits for has happened; a copy also when its link is free
//   a wait ends      at the time of the record, the notify or the value write that it was for
//   the host's time  goes on by each submit and by blocking copies, and is at least that of what it waited
//   for
//
// The main thread's clock is the process's. Other threads have clocks of their own, which are never behind it
// and do not move it. A value write, and an 8-byte copy, takes its time along to whoever waits for the word,
// also in another process; a notify and an event do so within their process only. All clocks start at 0.
class SimulatedTime final : public Observer {
 public:
  // Null unless it is on.
  static SimulatedTime* get();
  static void start_if_wanted(const Config& config);

  explicit SimulatedTime(const CostModel& model) : model(model) {}

  uint64_t now();  // of the calling thread, in ns since the last reset
  uint64_t stream_now(const Stream& stream);
  void reset();  // all clocks stand at 0 from now on; to be called when nothing runs

  void submitted(Stream&, const Task&, uint64_t number) override;
  void taken(Stream&, const Task&, uint64_t number) override;
  void dropped(Stream&, const Task&, uint64_t number) override;
  void begun(Stream&, const Task&, const TaskFacts&) override;
  void ended(Stream&, const Task&, const TaskFacts&, aclError) override;
  void released(SyncPoint&, Stream&) override;
  void acquired(SyncPoint&, Stream&) override;
  void host_waited(Stream&) override;
  void host_saw(SyncPoint&) override;
  void host_begun(const TaskFacts&) override;
  void stream_gone(Stream&) override;

  const CostModel& model;

 private:
  struct Lane {
    uint64_t clock = 0;
    std::deque<uint64_t> submitted;  // when the queued tasks were
  };
  enum Link : uint8_t { kMemory, kHostToDevice, kDeviceToHost, kPeerOut, kPeerIn, kLinks };

  uint64_t& host_clock();  // under the lock
  void take_off(Stream& stream);
  // When work ends that may begin at `earliest`; takes its link for that time.
  uint64_t end_of(const TaskFacts& facts, const Device& device, uint64_t earliest);

  std::mutex mutex_;
  std::unordered_map<const Stream*, Lane> lanes_;
  std::map<int32_t, std::array<BusyTimes, kLinks>> links_;
  uint64_t main_clock_ = 0;
  uint64_t latest_ = 0;  // of all clocks
  uint64_t origin_ = 0;  // what now() calls 0
};

}  // namespace emu
