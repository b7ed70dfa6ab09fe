#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "emulator/acl_headers.h"
#include "emulator/crew.h"
#include "emulator/event.h"
#include "emulator/task.h"

namespace emu {

class Condition;
struct GraphTask;
class Stream;
struct TaskGroup;

// What a capture collects, and what a replay runs. Each stream that took part is a lane.
//
//   state        reached by                          submits to its streams     End
//   kEmpty       a branch of a conditional task      -                          -
//   kCapturing   CaptureBegin                        go into the graph          kReady, or 107025
//   kInvalid     a forbidden call during capture     refused with 507903        507903
//   kReady       CaptureEnd                          (streams are free again)   107029
//   kDead        a capture that failed               (streams are free again)   107029
class Graph : public std::enable_shared_from_this<Graph> {
 public:
  enum State : uint8_t { kEmpty, kCapturing, kInvalid, kReady, kDead };

  // One captured task.
  struct Node {
    std::shared_ptr<Task> task;
    uint32_t sequence = 0;              // its place in the capture
    aclrtTaskGrp group = nullptr;       // the task group that it is part of
    aclmdlRITask handle = nullptr;      // once somebody asked for it
    std::shared_ptr<Task> edited = {};  // what aclmdlRIUpdate puts in its place
  };
  struct Wait {
    size_t position;  // nodes of the lane up to and with the wait
    const Record* record;
  };
  struct Lane {
    std::shared_ptr<Stream> captured;  // the program's stream, until the capture ends
    std::shared_ptr<Stream> own;       // the graph's: counts against the device's streams
    std::vector<Node> nodes = {};
    std::vector<Wait> waits = {};
    std::shared_ptr<TaskGroup> open_group = {};
    Crew::Member* member = nullptr;  // the thread that ran it the last time
  };

  explicit Graph(std::weak_ptr<Graph> parent = {});
  ~Graph();

  // Capture (capture.cpp).
  void begin(const std::shared_ptr<Stream>& first, aclmdlRICaptureMode mode);
  void add(Stream& stream, std::shared_ptr<Task> task);
  // Records an event inside the capture: an edge that a wait may hang on.
  std::shared_ptr<Record> record(Stream& stream, const Event& event);
  // A wait on such a record; pulls the waiting stream into the capture.
  void wait(const std::shared_ptr<Stream>& stream, const std::shared_ptr<Record>& record, const Event& event);
  void invalidate();
  // Ends the capture: lets the streams go and checks that all of them came back to the first.
  void finish();
  // Ends it without a graph, because its context ends.
  void abandon();

  // Task groups (task_group.cpp).
  void begin_group(Stream& stream);
  aclrtTaskGrp end_group(Stream& stream);

  // Tasks of a finished graph (graph_task.cpp). What is edited counts from the next update() on.
  std::vector<aclmdlRITask> tasks_of(const Stream& stream);
  uint32_t sequence_of(const GraphTask& task);
  void read_parameters(const GraphTask& task, aclmdlRITaskParams& out);
  void edit(const GraphTask& task, const aclmdlRITaskParams& given);
  void disable(const GraphTask& task);
  void update();

  // Conditional tasks (condition.cpp).
  std::shared_ptr<Condition> add_condition(uint64_t value, bool restored);
  std::vector<aclmdlRI> add_conditional(Stream& stream, const std::shared_ptr<Condition>& condition,
                                        aclmdlRICondTaskType type, size_t count);
  void check_branches_ended() const;  // throws 107046

  // Replay (replay.cpp).
  void replay(Stream& on);
  aclError run(Stream& on);  // the whole graph, on the worker of a stream
  void abort();              // ends the replay that runs
  bool is_running() const { return replays_.load() != 0; }

  // Life (graph.cpp).
  void release();  // gives everything back; throws 107037 while a replay runs
  void on_release(aclrtCallback function, void* argument);
  bool cancel_on_release(aclrtCallback function);  // false: was not registered
  void set_name(std::string name);
  std::string name() const;
  std::vector<std::shared_ptr<Stream>> streams() const;
  std::string describe() const;       // for people
  std::string describe_json() const;  // Chrome trace events, as torch_npu's tools expect

  State state() const { return state_.load(); }
  bool is_captured_now() const { return state() == kCapturing || state() == kInvalid; }
  bool is_branch() const { return is_branch_; }
  const std::shared_ptr<Stream>& origin() const { return origin_; }
  aclmdlRICaptureMode mode() const { return mode_; }
  uint64_t thread() const { return thread_; }  // that began the capture

  const uint32_t id;
  aclmdlRI handle = nullptr;

 private:
  struct Edge {
    std::shared_ptr<Record> record;
    size_t lane;
    size_t position;       // nodes of the lane up to and with the record
    bool crosses = false;  // waited for by another lane: it holds one of the device's events
  };

  Lane& add_lane(const std::shared_ptr<Stream>& stream);
  Lane& lane_of(const Stream& stream);
  Node& node_of(const GraphTask& task);
  size_t push(Lane& lane, std::shared_ptr<Task> task);
  void hold_event();
  void check_joined() const;
  void check_groups_ended() const;
  void let_streams_go();

  void run_lanes(Stream& on);
  void run_lane(size_t lane, Stream& on);
  bool take_turn(Stream& on);
  void give_turn();
  void cut_short(aclError code, std::string why);
  aclError mend(Stream& on);
  static void lane_job(void* graph, size_t lane);
  static void lane_finished(void* graph, size_t lane);

  const bool is_branch_;
  const std::weak_ptr<Graph> parent_;
  std::shared_ptr<Stream> origin_;
  aclmdlRICaptureMode mode_ = ACL_MODEL_RI_CAPTURE_MODE_GLOBAL;
  uint64_t thread_ = 0;

  mutable std::mutex mutex_;
  std::atomic<State> state_{kEmpty};
  std::string name_;
  std::vector<Lane> lanes_;
  std::unordered_map<const Record*, Edge> edges_;
  std::vector<std::shared_ptr<TaskGroup>> groups_;
  std::vector<std::shared_ptr<Condition>> conditions_;
  std::vector<std::shared_ptr<Graph>> branches_;
  uint32_t tasks_ = 0;
  int32_t events_ = 0;  // of the device, held
  std::vector<std::pair<aclrtCallback, void*>> on_release_;

  std::atomic<int> replays_{0};    // queued or running
  std::atomic<uint32_t> turn_{0};  // 1: a replay runs. One at a time: the edges are the graph's
  std::atomic<uint32_t> lanes_left_{0};
  SyncPoint start_;  // of the running replay: from its stream to the other lanes, and back
  SyncPoint end_;
  std::mutex cut_mutex_;
  Stream* on_ = nullptr;             // what the running replay runs on; under cut_mutex_
  aclError cut_code_ = ACL_SUCCESS;  // why it ends early
  std::string cut_why_;
};

}  // namespace emu
