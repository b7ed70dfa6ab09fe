#include "emulator/pollers.h"

#include <pthread.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <string>
#include <system_error>
#include <thread>

namespace emu {
namespace {

constexpr char kQueue[] = "acl_thread";  // which is there when the others are
constexpr char kPoller[] = "release_thread";
constexpr long kSlackNs = 1'000'000;

bool is_of_queue() {
  char name[16] = "";
  return pthread_getname_np(pthread_self(), name, sizeof name) == 0 && std::string(name) == kQueue;
}

// The poller of this queue is started right behind it, and may not bear its name yet.
constexpr int kLooks = 100;
constexpr auto kBetweenLooks = std::chrono::microseconds(100);

// Whether each queue's was found.
bool find_and_slow_down() {
  int queues = 0;
  int pollers = 0;
  std::error_code ignored;
  const std::filesystem::directory_iterator end;
  for (std::filesystem::directory_iterator thread("/proc/self/task", ignored); thread != end;
       thread.increment(ignored)) {
    std::string name;
    std::getline(std::ifstream(thread->path() / "comm"), name);
    if (name == kQueue) ++queues;
    if (name != kPoller) continue;
    std::ofstream("/proc/" + thread->path().filename().string() + "/timerslack_ns") << kSlackNs;
    ++pollers;
  }
  return pollers >= queues;
}

}  // namespace

void slow_down_pollers() {
  thread_local bool has_found = false;  // the queue of each device has one
  if (has_found || !is_of_queue()) return;
  for (int look = 0; look < kLooks; ++look) {
    has_found = find_and_slow_down();
    if (has_found) return;
    std::this_thread::sleep_for(kBetweenLooks);
  }
}

}  // namespace emu
