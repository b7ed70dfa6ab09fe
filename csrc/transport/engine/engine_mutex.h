// Guards an engine between the thread that works with it all the time and those that want it now and then, to
// register memory say: these wait for one pass at most.
#pragma once

#include <atomic>
#include <chrono>
#include <mutex>
#include <thread>

namespace datadist::engine {

class EngineMutex {
 public:
  void lock() {
    ++waiting_;
    mutex_.lock();
    --waiting_;
  }
  void unlock() { mutex_.unlock(); }

  class AfterOthers {
   public:
    explicit AfterOthers(EngineMutex& of) : lock_(of.mutex_, std::defer_lock) {
      while (of.waiting_ > 0) std::this_thread::sleep_for(std::chrono::microseconds(10));
      lock_.lock();
    }

   private:
    std::unique_lock<std::mutex> lock_;
  };

 private:
  std::mutex mutex_;
  std::atomic<int> waiting_{0};
};

}  // namespace datadist::engine
