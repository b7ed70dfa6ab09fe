#include "link/forked.h"

#include <pthread.h>
#include <unistd.h>

#include <atomic>

#include "error.h"
#include "messages/messages.h"

namespace datadist {
namespace {

std::atomic<bool> has_threads{false};
std::atomic<bool> is_child{false};

}  // namespace

void threads_start_here() {
  static const int code = pthread_atfork(nullptr, nullptr, [] { is_child.store(has_threads.load()); });
  require(code == 0, kFailed, "pthread_atfork returned ", code);
  has_threads.store(true);
}

bool is_forked_child() { return is_child.load(std::memory_order_relaxed); }

void require_not_forked(const char* asked) {
  if (is_forked_child()) refuse(Message::forked_child, {{"asked", asked}, {"value", getpid()}});
}

}  // namespace datadist
