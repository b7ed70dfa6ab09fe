#pragma once

#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "emulator/observer.h"

namespace emu::watch {

// A time line of the process in Chrome's JSON array format, which Perfetto reads, too: a track per stream
// with its tasks, a track per host thread with its calls, arrows from submit to task and from record to wait.
// One event a line, so what a killed process wrote can be read. Lines are written by a thread of their own
// every few milliseconds; who is faster than it waits for it.
class Trace final : public Observer {
 public:
  explicit Trace(std::string directory);

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

 private:
  struct Entry {
    char phase;  // X, i, s, f, M
    const char* category;
    std::string name;
    uint64_t track;
    uint64_t begin_ns;
    uint64_t end_ns;
    uint64_t flow;     // of s and f
    std::string args;  // the inside of a JSON object
  };
  struct Submitted {
    uint64_t number;
    uint64_t at_ns;
    int32_t from_stream;  // -1: the host
  };
  struct Line {
    std::vector<Submitted> queue;
    Submitted running{};
  };

  void add(Entry entry);
  void add_now(const char* category, const char* name, uint64_t track, std::string args);
  uint64_t host_track();
  uint64_t track_of(const Stream& stream);
  std::string facts_text(const TaskFacts& facts) const;
  // With the lock: the file, and the thread that writes it. Again in a forked child.
  void open();
  void write_loop();
  void write_out(std::vector<Entry> entries);
  void after_fork();

  const std::string directory_;
  std::mutex mutex_;
  std::mutex write_mutex_;
  std::condition_variable full_;
  std::condition_variable room_;
  std::vector<Entry> waiting_;
  std::unordered_map<const Stream*, Line> lines_;
  std::unordered_map<uint64_t, bool> named_;
  int fd_ = -1;
};

std::unique_ptr<Observer> trace_of_environment();

}  // namespace emu::watch
