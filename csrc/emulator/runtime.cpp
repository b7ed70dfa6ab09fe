#include "emulator/runtime.h"

#include <pthread.h>

#include <cstdlib>

#include "emulator/capture.h"
#include "emulator/condition.h"
#include "emulator/context.h"
#include "emulator/copy_engines.h"
#include "emulator/crew.h"
#include "emulator/device.h"
#include "emulator/event.h"
#include "emulator/faults.h"
#include "emulator/graph.h"
#include "emulator/graph_task.h"
#include "emulator/host_function.h"
#include "emulator/host_memory.h"
#include "emulator/ipc_event.h"
#include "emulator/ipc_memory.h"
#include "emulator/leaks.h"
#include "emulator/notify.h"
#include "emulator/observer.h"
#include "emulator/simulated_time.h"
#include "emulator/stream.h"
#include "emulator/task_group.h"
#include "emulator/virtual_memory.h"

namespace emu {
Runtime& Runtime::get() {
  static Runtime& runtime = *new Runtime;
  return runtime;
}

Runtime::Runtime()
    : config(Config::from_environment()),
      captures(std::make_unique<Captures>()),
      crew(std::make_unique<Crew>()),
      copy_engines(config.copy_engines ? std::make_unique<CopyEngines>(*config.copy_engines)
                                       : std::make_unique<CopyEngines>()),
      host_memory(std::make_unique<HostMemory>()),
      reports(std::make_unique<Reports>()),
      exports(std::make_unique<Exports>()),
      imports(std::make_unique<Imports>()),
      notify_pool(std::make_unique<NotifyPool>()),
      ipc_events(std::make_unique<IpcEventPool>()),
      faults(std::make_unique<Faults>(config)),
      virtual_memory(std::make_unique<VirtualMemory>()) {
  for (const int32_t physical : config.physical_devices) {
    const auto id = static_cast<int32_t>(devices.size());
    devices.push_back(std::make_unique<Device>(id, physical, config.device_memory));
  }
  add_observers_of_environment();
  values_reach_peers.store(config.profile.values_reach_peers);
  SimulatedTime::start_if_wanted(config);
  pthread_atfork(nullptr, nullptr, [] {
    Runtime& runtime = get();
    // The workers and what they held locked are not in the child.
    if (runtime.used_.load()) runtime.forked_.store(true);
    runtime.faults->after_fork();
  });
  // Host functions may use libraries whose static destructors run after this.
  std::atexit([] {
    get().stop_everything();
    if (auto* watching = observer(); watching != nullptr && !get().forked()) watching->flush();
  });
}

uint64_t Runtime::initialise() { return references_.fetch_add(1) + 1; }

uint64_t Runtime::finalise() {
  uint64_t open = references_.load();
  while (open > 0 && !references_.compare_exchange_weak(open, open - 1)) {
  }
  if (open == 1) stop_everything();
  return open == 0 ? 0 : open - 1;
}

void Runtime::finalise_all() {
  references_.store(0);
  stop_everything();
}

void Runtime::stop_everything() {
  if (forked()) return;
  report_leaks();
  for (const auto& stream : streams.all()) stream->close();
  const auto deadline = Clock::now() + Context::kPatience;
  for (const auto& context : contexts.all()) context->destroy(deadline);
  for (const auto& device : devices) device->reset(true);
}

Device& Runtime::device(int32_t id) {
  if (id < 0 || static_cast<size_t>(id) >= devices.size()) {
    fail(ACL_ERROR_RT_INVALID_DEVICEID, "device %d does not exist; this process sees %zu", id,
         devices.size());
  }
  return *devices[static_cast<size_t>(id)];
}

}  // namespace emu
