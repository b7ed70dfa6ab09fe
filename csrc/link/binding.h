// Joins tasks (what a forward sends) and tickets (what it waits for) to the forward's layer ops, which carry
// no request of their own: only this binding's number, the same for the life of the forward.
//
// Each bind begins a round. Before a graph has captured any op, a round has gates of its own, and binding
// blocks for nobody. From then on all rounds share the gates that the graph knows: the next one begins when
// the last replay has passed them and all of them were seen at 0.
#pragma once

#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <vector>

#include "acl/acl_rt.h"
#include "link/engine.h"
#include "link/handles.h"
#include "link/round.h"

namespace datadist {

class Binding {
 public:
  Binding(std::shared_ptr<Engine> engine, std::vector<int64_t> layers, std::chrono::milliseconds timeout);

  // Replaces what was bound. Layers in `open_layers` have no gate: a wait passes at once, a push goes at
  // once.
  void bind(std::vector<std::shared_ptr<Transfer>> tasks, const std::vector<int64_t>& tickets,
            const std::vector<int64_t>& open_layers, std::chrono::milliseconds timeout);
  // Undoes the last bind: no forward and no replay that uses it comes any more.
  void unbind();
  // Its number means nothing any more. What is queued, and graphs, go on with the gates they know.
  void close();

  // Worked out when the op is called, queued in its handler.
  OpSteps push_layer(int64_t layer, const OpStream& stream);
  OpSteps wait_layer(int64_t layer, const OpStream& stream);
  OpSteps finish(const OpStream& stream);

  // The same for a caller that computes on the host: its earlier work is done, and it is blocked where a
  // stream would wait (without the GIL or a lock; the transfers' deadlines end it). The binding's code.
  int64_t push_layer_from_host(int64_t layer);
  int64_t wait_layer_on_host(int64_t layer);
  int64_t finish_on_host();

  // What a profiler's timeline says of an op: its layer, and what is bound to it.
  std::string push_span(int64_t layer) const;
  std::string wait_span(int64_t layer) const;
  std::string finish_span() const;

  int device() const { return engine_->device(); }
  Engine& engine() const { return *engine_; }
  void set_number(int64_t number) { number_ = number; }

  void abandon();  // there is no watchdog any more

  // Watchdog; true while it wants to be looked at soon.
  bool tick(const Tick& tick);
  bool is_gone() const;  // closed, and no stream or graph uses its words

 private:
  std::unique_lock<std::mutex> begin_capture(const char* asked, const OpStream& stream);
  Round& round_for_op(const char* asked, const OpStream& stream) const;
  void require_first_push(const Round& round, size_t index) const;
  size_t index_of(int64_t layer, const char* asked) const;
  void check(const std::vector<std::shared_ptr<Transfer>>& tasks,
             const std::vector<std::shared_ptr<Ticket>>& tickets, const std::set<int64_t>& open) const;
  void wait_for_last_replay(Clock::time_point deadline);
  void replace_round(std::shared_ptr<Round> round);
  bool tick_graph_gates(const Tick& tick);

  const std::shared_ptr<Engine> engine_;
  const std::shared_ptr<const Round::Layers> layers_;
  std::map<int64_t, size_t> index_;
  const std::chrono::milliseconds timeout_;
  int64_t number_ = 0;

  std::mutex bind_mutex_;  // held by one bind from beginning to end; the other one never while anybody waits
  mutable std::mutex mutex_;
  std::condition_variable passed_;  // hosts that wait for a layer look again
  bool is_abandoned_ = false;
  std::shared_ptr<Gates> next_gates_;
  std::shared_ptr<Gates> graph_gates_;  // once a graph has captured an op
  std::shared_ptr<Round> round_;
  std::vector<std::shared_ptr<Round>> past_;  // with gates of their own that are still in use
  bool is_closed_ = false;
  // What bind and the watchdog tell each other about the gates of graphs.
  bool wants_gates_ = false;
  bool are_cleared_ = false;
  bool has_gates_ = false;
  bool is_armed_ = false;  // a replay that comes now finds an error in its status
};

HandleTable<Binding>& bindings();

}  // namespace datadist
