#pragma once

#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

namespace emu::watch {

// An event of a trace, in the words of Chrome's format.
struct TraceEntry {
  char phase;  // X: lasted, i: a moment, s and f: an arrow's ends, M: a name
  const char* category;
  std::string name;
  uint64_t track;
  uint64_t begin_ns;
  uint64_t end_ns;
  uint64_t flow;     // of s and f
  std::string args;  // the inside of a JSON object
};

// The file that a process's trace goes to, trace.<pid>.json: an array, one event a line, so that what a
// killed process wrote can be read. A thread of its own writes it every few milliseconds; who is faster than
// it waits for it. A forked child that has something to say begins a file of its own.
class TraceFile {
 public:
  explicit TraceFile(std::string directory);

  void add(TraceEntry entry);
  // True for the first one who asks with this track, once in each process.
  bool is_new(uint64_t track);
  void flush();

 private:
  // With the lock.
  void open();
  void write_loop();
  void write_out(const std::vector<TraceEntry>& entries);
  void after_fork();

  const std::string directory_;
  std::mutex mutex_;
  std::mutex write_mutex_;
  std::condition_variable full_;
  std::condition_variable room_;
  std::vector<TraceEntry> waiting_;
  std::vector<uint64_t> tracks_;  // sorted
  int fd_ = -1;
};

}  // namespace emu::watch
