#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <utility>

#include "emulator/observer.h"
#include "emulator/ranges.h"
#include "emulator/watch/trace_file.h"

namespace emu::watch {

// A time line of the process in Chrome's JSON array format, which Perfetto reads, too: a track per stream
// with its tasks, a track per host thread with its calls, arrows from submit to task and from record to wait.
class Trace final : public Observer, public RangeKeeper {
 public:
  explicit Trace(std::string directory) : file_(std::move(directory)) {}

  void call_begun(const char* name) override;
  void call_ended(const char* name, aclError code) override;
  void submitted(Stream& stream, const Task& task, uint64_t number) override;
  void taken(Stream& stream, const Task& task, uint64_t number) override;
  void dropped(Stream& stream, const Task& task, uint64_t number) override;
  void begun(Stream& stream, const Task& task, const TaskFacts& facts) override;
  void ended(Stream& stream, const Task& task, const TaskFacts& facts, aclError code) override;
  void released(SyncPoint& point, Stream& stream) override;
  void acquired(SyncPoint& point, Stream& stream) override;
  void restarted(SyncPoint& point) override;
  void host_waited(Stream& stream) override;
  void host_saw(SyncPoint& point) override;
  void host_begun(const TaskFacts& facts) override;
  void host_ended(const TaskFacts& facts) override;
  void allocated(const Block& block) override;
  void freed(const Block& block) override;
  void host_memory_forgotten(uintptr_t base, size_t size) override;
  void stream_gone(Stream& stream) override;
  void flush() override;
  void found_race(const std::string& report) override;
  uint64_t now() override;
  void ranged(Stream* stream, const std::string& message, uint64_t began) override;

 private:
  struct Submitted {
    uint64_t number;
    uint64_t at_ns;
    int32_t from_stream;  // -1: the host
  };
  struct Line {
    std::deque<Submitted> queue;
    Submitted running{};
  };

  void add_now(const char* category, const char* name, uint64_t track, std::string args);
  uint64_t host_track();
  uint64_t track_of(const Stream& stream);

  TraceFile file_;
  std::atomic<int> telling_{0};  // tasks that may have told somebody something, and are not in the file
  std::mutex mutex_;
  std::unordered_map<const Stream*, Line> lines_;
};

std::unique_ptr<Observer> trace_of_environment();

}  // namespace emu::watch
