#include "emulator/thread.h"

#include <pthread.h>
#include <unistd.h>

#include <thread>

#include "emulator/context.h"
#include "emulator/faults.h"
#include "emulator/runtime.h"
#include "emulator/without_signals.h"

namespace emu {
namespace {

thread_local Thread* current = nullptr;

struct Cleaner {
  // Static destructors of the main thread still call ACL after its thread-locals are gone: its record stays.
  ~Cleaner() {
    if (gettid() == getpid()) return;
    delete current;
    current = nullptr;
  }
};

}  // namespace

Thread& Thread::self() {
  if (current == nullptr) [[unlikely]] {
    current = new Thread;
    current->id = static_cast<uint64_t>(pthread_self());
    thread_local Cleaner cleaner;
    static_cast<void>(cleaner);
  }
  return *current;
}

void start_thread(const std::string& name, std::function<void()> body) {
  // A thread begins with its parent's name: who freezes by names waits until it has its own.
  auto& births = Runtime::get().faults->births();
  births.fetch_add(1);
  const WithoutSignals block;
  try {
    std::thread([name, body = std::move(body), &births] {
      pthread_setname_np(pthread_self(), name.substr(0, 15).c_str());
      births.fetch_sub(1);
      Thread::self().is_device = name.starts_with("npu-");
      body();
    }).detach();
  } catch (...) {
    births.fetch_sub(1);
    throw;
  }
}

}  // namespace emu
