// What one `bind` connects: the gates that a forward meets, on one side, and tasks and tickets on the other.
//
//                a graph, which knows the binding's gates only         an eager op, called after `bind`
//   push_layer   writes `released`; a relay takes it and opens the     opens the start gates of all tasks
//                start gates of all tasks
//   wait_layer   a relay waits for the arrival flags of all tickets    waits for those flags itself
//                and writes `opened`; the forward takes it
//   finish       a relay waits for the done gates of all tasks and     waits for those gates itself
//                writes `opened`; the forward takes it
//
// All of these words are local memory. A relay is a stream more on the way, and each stream that one waits
// for costs a wake-up: so eager ops do without (half of the latency of a small transfer was relays). Where
// there is nothing to relay, the watchdog opens and takes the gates that a graph has captured.
#pragma once

#include <atomic>
#include <chrono>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "acl/acl_rt.h"
#include "link/gates.h"
#include "link/op_steps.h"
#include "link/relay.h"
#include "link/ticket.h"
#include "link/transfer.h"
#include "link/wait_round.h"

namespace datadist {

// Who calls an op.
struct OpStream {
  aclrtStream raw;
  bool captures;
};

class Round {
 public:
  using Layers = std::vector<int64_t>;

  Round(Engine& engine, std::shared_ptr<Gates> gates, std::shared_ptr<const Layers> layers);

  // Takes the tasks and tickets, and with gates of graphs starts what relays. Throws when one of them is
  // refused; none of them is bound then.
  void connect(std::vector<std::shared_ptr<Transfer>> tasks, std::vector<std::shared_ptr<Ticket>> tickets,
               std::set<int64_t> open_layers, std::chrono::milliseconds timeout);
  bool is_connected() const { return is_connected_; }
  // What eager ops do without: streams for relays. Before `serve_graphs`, or `wait_on_host`, of a connected
  // round; without a lock, since it may allocate.
  void make_relays() { make_relays(has_tasks()); }
  void make_relay_for_waits();
  // A graph begins to know the gates, and no eager op was called yet.
  void serve_graphs();
  const std::shared_ptr<Gates>& gates() const { return gates_; }
  bool has_tasks() const { return !tasks_.empty(); }

  // The ops; `layer` is an index into the layers.
  OpSteps push(size_t layer, const OpStream& stream);
  OpSteps wait(size_t layer, const OpStream& stream);
  OpSteps finish(const OpStream& stream);
  // The same for a caller on the host, for whom the watchdog writes and takes.
  void require_host_memory(size_t layer, const char* asked) const;
  void push_from_host(size_t layer);
  bool wait_on_host(size_t layer);  // true: there is nothing to wait for; else until `has_passed`
  bool has_passed(size_t layer) const {
    return is_for_graphs() ? waits_[layer].times > 0 : waits_[layer].host_has_passed;
  }
  const std::vector<std::shared_ptr<Transfer>>& tasks() const { return tasks_; }
  int64_t code() const { return status_->code(); }
  // For a profiler's timeline.
  std::string push_span(size_t layer) const;
  std::string wait_span() const;
  std::string finish_span() const;

  bool is_untouched() const { return !was_called_; }  // no eager op was called
  bool was_pushed(size_t layer) const { return pushes_[layer].is_queued; }

  // No forward comes any more that has not been called: what was not pushed is not sent. `also_graphs`: no
  // replay comes either.
  void retire(const std::string& why, bool also_graphs);

  // Watchdog. True while a replay that nobody bound is under way.
  bool tick(const Tick& tick);
  // The forward, and each replay that nobody bound, has passed all gates that its ops are known to meet.
  bool is_over() const;
  bool is_gone() const;  // over, and no stream of ours reads or writes the gates any more
  void detach_status() { status_->detach(); }
  // Writes 0 to gates that nobody passed.
  void sweep(const Tick& tick);

 private:
  // A forward meets each captured gate once, so it is through when all of them were passed equally often.
  struct Push {
    bool is_needed = false;  // by a task that was not told to go at once
    bool is_relayed = false;
    bool is_queued = false;
    bool is_asked = false;   // by a host
    bool is_forced = false;  // by the watchdog, since nobody needs it any more: no forward has come
    int times = 0;           // passed
    size_t step = 0;         // of the relay, the one that takes it
  };
  struct Wait {
    // kShut: nothing opens it. kAsked: the watchdog will. kRelayed: a relay does. kOpen: it was opened before
    // the watchdog's last look.
    enum State : uint8_t { kShut, kAsked, kRelayed, kOpen };
    State state = kShut;
    bool is_queued = false;
    bool is_suspect = false;
    bool is_for_host = false;
    bool host_has_passed = false;  // beside `times`, which an eager op on a stream counts when it is queued
    int times = 0;
    aclrtStream stream = nullptr;
  };

  // How far a stream has come that called ops which met no gate: they read the status all the same.
  struct Mark {
    aclrtStream stream;
    uint64_t last = 0;
  };

  void make_relays(bool for_tasks);
  void relay_pushes();
  void relay_waits();
  void relay_finish();
  bool is_for_graphs() const { return gates_->belong_to_graphs; }
  OpSteps start_tasks(size_t layer, const OpStream& stream);
  OpSteps await_flags(size_t layer, const OpStream& stream);
  OpSteps await_tasks(const OpStream& stream);
  static bool is_repeated(Wait& wait, const OpStream& stream);
  bool all_layers_are_awaited() const;
  OpSteps pass(const WaitGate& gate, Wait& wait, const OpStream& stream);
  OpSteps only_status(const OpStream& stream);
  OpSteps without_gate(const OpStream& stream);
  bool marks_are_passed() const;
  void capture(WaitGate& gate, Wait& wait);
  int times_passed() const;
  bool may_come(bool is_captured) const { return is_captured && !is_retired_from_graphs_; }
  // What the watchdog sees; both return how many forwards have come at least.
  int look_at(const WaitGate& gate, Wait& wait, const Tick& tick);
  int look_at_pushes(const Tick& tick);
  void look_at_relays(const Tick& tick);
  void let_pass(const Tick& tick, int forwards);

  Engine& engine_;
  const std::shared_ptr<Gates> gates_;
  const std::shared_ptr<const Layers> layers_;
  const std::shared_ptr<Status> status_;
  const std::shared_ptr<std::atomic<bool>> refused_ = std::make_shared<std::atomic<bool>>(false);
  std::vector<std::shared_ptr<Transfer>> tasks_;  // kept: relays and ops write and read their words
  std::vector<std::shared_ptr<Ticket>> tickets_;
  std::vector<bool> is_open_;  // per layer: nothing of it is pushed or waited for
  std::vector<Push> pushes_;
  std::vector<Wait> waits_;
  Wait finish_;
  std::vector<Mark> marks_;  // as many as the gates have words for them, or fewer
  std::shared_ptr<Relay> push_relay_;
  std::shared_ptr<WaitRound> wait_round_;
  std::shared_ptr<Relay> finish_relay_;
  bool saw_push_relay_ = false;  // done, and all that its end asks for
  bool saw_finish_relay_ = false;
  bool relays_for_host_ = false;
  bool is_connected_ = false;
  bool was_called_ = false;
  bool is_retired_from_graphs_ = false;
  bool told_refusal_ = false;
};

}  // namespace datadist
