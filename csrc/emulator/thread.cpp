#include "emulator/thread.h"

#include <pthread.h>
#include <unistd.h>

#include "emulator/context.h"

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

}  // namespace emu
