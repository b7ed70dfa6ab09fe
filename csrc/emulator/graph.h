#pragma once

#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "emulator/acl_headers.h"
#include "emulator/event.h"
#include "emulator/task.h"

namespace emu {

class Context;
class Stream;

// What a capture collects, and what a replay runs. Each stream that took part is a lane.
//
//   state        reached by                          submits to its streams     End
//   kCapturing   CaptureBegin                        go into the graph          kReady, or 107025
//   kInvalid     a forbidden call during capture     refused with 507903        507903
//   kReady       CaptureEnd                          (streams are free again)   107029
class Graph : public std::enable_shared_from_this<Graph> {
 public:
  enum State : uint8_t { kCapturing, kInvalid, kReady };

  Graph(std::shared_ptr<Context> context, std::shared_ptr<Stream> origin, aclmdlRICaptureMode mode);
  ~Graph();

  void add(Stream& stream, std::shared_ptr<Task> task);
  // Records an event inside the capture: an edge that a wait may hang on.
  std::shared_ptr<Record> record(Stream& stream);
  // A wait on such a record; pulls the waiting stream into the capture.
  void wait(const std::shared_ptr<Stream>& stream, const std::shared_ptr<Record>& record);
  void invalidate();
  // Ends the capture: lets the streams go and checks that all of them came back to the first.
  void finish();

  void replay(Stream& on);
  void release();  // ends the lanes' streams; throws 107037 while a replay runs

  State state() const { return state_.load(); }
  std::string describe() const;

  const std::shared_ptr<Stream> origin;
  const aclmdlRICaptureMode mode;
  const uint64_t thread;  // that began the capture
  const uint32_t id;
  aclmdlRI handle = nullptr;

 private:
  struct Wait {
    size_t position;
    const Record* record;
  };
  struct Lane {
    std::shared_ptr<Stream> captured;  // the program's stream, until the capture ends
    std::shared_ptr<Stream> runs_on;   // the graph's own, for all lanes but the first
    std::vector<std::shared_ptr<Task>> tasks;
    std::vector<Wait> waits;
  };
  struct Edge {
    std::shared_ptr<Record> record;
    size_t lane;
    size_t position;  // tasks of the lane up to and with the record
  };
  class Replay;

  Lane& lane_of(Stream& stream);
  void check_joined() const;
  aclError run_lane(const Lane& lane, Stream& on);
  aclError run(Stream& on);

  const std::shared_ptr<Context> context_;
  mutable std::mutex mutex_;
  std::mutex replay_mutex_;  // one replay at a time: the edges are the graph's
  std::atomic<State> state_{kCapturing};
  std::vector<Lane> lanes_;
  std::unordered_map<const Record*, Edge> edges_;
  std::atomic<int> replays_{0};  // queued or running
  std::atomic<bool> lane_failed_{false};
};

// The captures that are open in this process, for the calls that are forbidden meanwhile.
class Captures {
 public:
  void open(const std::shared_ptr<Graph>& graph);
  void close(const Graph& graph);
  bool any() const { return count_.load(std::memory_order_relaxed) != 0; }
  bool any_in(const Context& context) const;
  // Throws `code` when the calling thread may not make an unsafe call now, and spoils the captures it
  // touches.
  void check_unsafe(aclError code) const;

 private:
  mutable std::mutex mutex_;
  std::vector<std::shared_ptr<Graph>> open_;
  std::atomic<int> count_{0};
};

}  // namespace emu
