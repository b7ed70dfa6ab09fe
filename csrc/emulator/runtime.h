#pragma once

#include <array>
#include <atomic>
#include <memory>
#include <vector>

#include "emulator/address_space.h"
#include "emulator/config.h"
#include "emulator/entry.h"
#include "emulator/handle.h"

namespace emu {

class Captures;
class Condition;
class Context;
class CopyEngines;
class Crew;
class Device;
class Event;
class Exports;
class Faults;
class Graph;
struct GraphTask;
class HostMemory;
class Imports;
class IpcEventPool;
class Notify;
class NotifyPool;
class Physical;
class Reports;
class Stream;
struct TaskGroup;
class VirtualMemory;

// All state of the emulator in this process. Made by the first call and never destroyed: threads, static
// destructors and interpreter shutdown may call in at any time.
class Runtime {
 public:
  static Runtime& get();

  EntryState& entry(Entry e) { return entries_[static_cast<size_t>(e)]; }

  bool initialised() const { return references_.load(std::memory_order_relaxed) > 0; }
  // aclInit counts; returns how many are open now.
  uint64_t initialise();
  uint64_t finalise();
  void finalise_all();
  // Ends all contexts and waits, with a bound, for their workers.
  void stop_everything();

  bool forked() const { return forked_.load(std::memory_order_relaxed); }
  void forbid_after_fork() { used_.store(true); }

  Device& device(int32_t id);  // throws 107001

  const Config config;
  std::vector<std::unique_ptr<Device>> devices;
  AddressSpace memory;
  HandleTable<Context, 1> contexts{"context"};
  HandleTable<Stream, 2> streams{"stream"};
  HandleTable<Event, 3> events{"event"};
  HandleTable<Graph, 4> graphs{"graph"};
  HandleTable<Physical, 5> physicals{"physical memory"};
  HandleTable<Notify, 8> notifies{"notify"};
  HandleTable<TaskGroup, 16> task_groups{"task group"};
  HandleTable<GraphTask, 17> graph_tasks{"graph task"};
  HandleTable<Condition, 18> conditions{"condition"};
  const std::unique_ptr<Captures> captures;
  const std::unique_ptr<Crew> crew;
  const std::unique_ptr<CopyEngines> copy_engines;
  const std::unique_ptr<HostMemory> host_memory;
  const std::unique_ptr<Reports> reports;
  const std::unique_ptr<Exports> exports;
  const std::unique_ptr<Imports> imports;
  const std::unique_ptr<NotifyPool> notify_pool;
  const std::unique_ptr<IpcEventPool> ipc_events;
  const std::unique_ptr<Faults> faults;
  const std::unique_ptr<VirtualMemory> virtual_memory;

  std::atomic<int32_t> next_stream_id{0};
  std::atomic<uint32_t> next_event_id{0};
  std::atomic<uint32_t> next_graph_id{0};
  std::atomic<uint64_t> tasks_run{0};
  std::atomic<uint64_t> bytes_copied{0};
  std::atomic<uint64_t> words_woken{0};  // writes of words that found somebody waiting
  std::atomic<int64_t> system_parameters[3] = {};
  std::atomic<uint64_t> execute_timeout_us{0};
  std::atomic<uint32_t> wait_timeout_s{0};
  std::atomic<bool> values_reach_peers{true};  // see Profile

 private:
  Runtime();

  std::array<EntryState, static_cast<size_t>(Entry::kCount)> entries_;
  std::atomic<uint64_t> references_{0};
  std::atomic<bool> used_{false};
  std::atomic<bool> forked_{false};
};

}  // namespace emu
