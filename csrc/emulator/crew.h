#pragma once

#include <atomic>
#include <cstddef>
#include <memory>
#include <mutex>
#include <vector>

namespace emu {

// The threads that run the lanes of replays beside the first one. They are kept for as long as the process
// lives and shared by all graphs: a thread that computes has an OpenMP pool, and starting either at each
// replay would cost more than the replay.
class Crew {
 public:
  // `work` runs on the thread; `finished` after the thread may be given another job.
  struct Job {
    void (*work)(void* owner, size_t index) = nullptr;
    void (*finished)(void* owner, size_t index) = nullptr;
    void* owner = nullptr;
    size_t index = 0;
  };
  class Member;

  Crew();
  ~Crew();

  // Each job that is running has a thread of its own. `last`: who did this job the last time, and does it
  // again if idle, so that a lane that computes finds its OpenMP pool. Throws 207005 when there is no thread.
  void run(const Job& job, Member*& last);

 private:
  Member& idle_member(Member* preferred);
  static void work(Crew& crew, Member& member);

  std::mutex mutex_;
  std::vector<std::unique_ptr<Member>> members_;
  std::vector<Member*> idle_;
};

}  // namespace emu
