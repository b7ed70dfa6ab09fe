#include "emulator/observer.h"

#include <sys/stat.h>

#include <mutex>
#include <vector>

#include "emulator/watch/race_checker.h"
#include "emulator/watch/trace.h"

namespace emu {

uint64_t inode_of(int fd) {
  struct stat about{};
  return fstat(fd, &about) == 0 ? about.st_ino : 0;
}
namespace {

// Several observers as one. Never changed once it is published.
class Everybody final : public Observer {
 public:
  explicit Everybody(std::vector<Observer*> all) : all_(std::move(all)) {}

  void call_begun(const char* name) override {
    for (auto* one : all_) one->call_begun(name);
  }
  void call_ended(const char* name, aclError code) override {
    for (auto* one : all_) one->call_ended(name, code);
  }
  void submitted(Stream& stream, const Task& task, uint64_t number) override {
    for (auto* one : all_) one->submitted(stream, task, number);
  }
  void taken(Stream& stream, const Task& task, uint64_t number) override {
    for (auto* one : all_) one->taken(stream, task, number);
  }
  void dropped(Stream& stream, const Task& task, uint64_t number) override {
    for (auto* one : all_) one->dropped(stream, task, number);
  }
  void begun(Stream& stream, const Task& task, const TaskFacts& facts) override {
    for (auto* one : all_) one->begun(stream, task, facts);
  }
  void ended(Stream& stream, const Task& task, const TaskFacts& facts, aclError code) override {
    for (auto* one : all_) one->ended(stream, task, facts, code);
  }
  void released(SyncPoint& point, Stream& stream) override {
    for (auto* one : all_) one->released(point, stream);
  }
  void acquired(SyncPoint& point, Stream& stream) override {
    for (auto* one : all_) one->acquired(point, stream);
  }
  void restarted(SyncPoint& point) override {
    for (auto* one : all_) one->restarted(point);
  }
  void found_race(const std::string& report) override {
    for (auto* one : all_) one->found_race(report);
  }
  void host_waited(Stream& stream) override {
    for (auto* one : all_) one->host_waited(stream);
  }
  void host_saw(SyncPoint& point) override {
    for (auto* one : all_) one->host_saw(point);
  }
  void host_begun(const TaskFacts& facts) override {
    for (auto* one : all_) one->host_begun(facts);
  }
  void host_ended(const TaskFacts& facts) override {
    for (auto* one : all_) one->host_ended(facts);
  }
  void allocated(const Block& block) override {
    for (auto* one : all_) one->allocated(block);
  }
  void freed(const Block& block) override {
    for (auto* one : all_) one->freed(block);
  }
  void host_memory_forgotten(uintptr_t base, size_t size) override {
    for (auto* one : all_) one->host_memory_forgotten(base, size);
  }
  void stream_gone(Stream& stream) override {
    for (auto* one : all_) one->stream_gone(stream);
  }
  void flush() override {
    for (auto* one : all_) one->flush();
  }

 private:
  const std::vector<Observer*> all_;
};

}  // namespace

void add_observer(std::unique_ptr<Observer> observer) {
  static std::mutex mutex;
  static std::vector<Observer*>& all = *new std::vector<Observer*>;
  std::lock_guard lock(mutex);
  all.push_back(observer.release());
  observing::one.store(all.size() == 1 ? all.front() : new Everybody(all), std::memory_order_release);
}

void add_observers_of_environment() {
  if (auto trace = watch::trace_of_environment()) add_observer(std::move(trace));
  if (auto races = watch::race_checker_of_environment()) add_observer(std::move(races));
}

const char* name_of(TaskKind kind) {
  switch (kind) {
    case TaskKind::Copy:
      return "copy";
    case TaskKind::Fill:
      return "fill";
    case TaskKind::ValueWrite:
      return "value write";
    case TaskKind::ValueWait:
      return "value wait";
    case TaskKind::EventRecord:
      return "event record";
    case TaskKind::EventWait:
      return "event wait";
    case TaskKind::EventReset:
      return "event reset";
    case TaskKind::NotifyRecord:
      return "notify record";
    case TaskKind::NotifyWait:
      return "notify wait";
    case TaskKind::HostFunction:
      return "host function";
    case TaskKind::Compute:
      return "compute";
    case TaskKind::Delay:
      return "delay";
    case TaskKind::Replay:
      return "replay";
    default:
      return "other";
  }
}

uint64_t SyncPoint::number() {
  static std::atomic<uint64_t> next{1};
  uint64_t known = number_.load(std::memory_order_relaxed);
  if (known != 0) return known;
  const uint64_t given = next.fetch_add(1, std::memory_order_relaxed);
  return number_.compare_exchange_strong(known, given) ? given : known;
}

}  // namespace emu
