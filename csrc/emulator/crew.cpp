#include "emulator/crew.h"

#include <algorithm>
#include <system_error>

#include "emulator/error.h"
#include "emulator/futex.h"
#include "emulator/thread.h"

namespace emu {
namespace {

// Looks for a job before the thread sleeps: between the lanes of two replays in a row there is little time.
constexpr int kLooks = 400;

}  // namespace

class Crew::Member {
 public:
  void give(const Job& job) {
    job_ = job;
    has_job_.store(1);
    if (asleep_.load() != 0) futex_wake_all(&has_job_);
  }

  Job take() {
    for (int i = 0; i < kLooks; ++i) {
      if (has_job_.load(std::memory_order_acquire) != 0) return taken();
      cpu_relax();
    }
    asleep_.store(1);
    while (has_job_.load() == 0) futex_wait(&has_job_, 0);
    asleep_.store(0);
    return taken();
  }

 private:
  Job taken() {
    const Job job = job_;
    has_job_.store(0);
    return job;
  }

  Job job_;
  std::atomic<uint32_t> has_job_{0};
  std::atomic<uint32_t> asleep_{0};
};

Crew::Crew() = default;
Crew::~Crew() = default;

void Crew::work(Crew& crew, Member& member) {
  for (;;) {
    const Job job = member.take();
    job.work(job.owner, job.index);
    {
      std::lock_guard lock(crew.mutex_);
      crew.idle_.push_back(&member);
    }
    // Told last: whoever hears it may start the next replay at once, and should find this thread idle.
    job.finished(job.owner, job.index);
  }
}

Crew::Member& Crew::idle_member(Member* preferred) {
  std::lock_guard lock(mutex_);
  auto found = std::find(idle_.begin(), idle_.end(), preferred);
  if (found == idle_.end() && !idle_.empty()) found = idle_.end() - 1;
  if (found != idle_.end()) {
    Member& member = **found;
    idle_.erase(found);
    return member;
  }
  Member& member = *members_.emplace_back(std::make_unique<Member>());
  try {
    start_thread(text("npu-replay-%zu", members_.size()), [this, &member] { work(*this, member); });
  } catch (const std::system_error& error) {
    members_.pop_back();
    fail(ACL_ERROR_RT_RESOURCE_ALLOC_FAIL, "no thread for a stream of the graph: %s", error.what());
  }
  return member;
}

void Crew::run(const Job& job, Member*& last) {
  last = &idle_member(last);
  last->give(job);
}

}  // namespace emu
