#include "link/round.h"

#include <algorithm>
#include <utility>

#include "error.h"
#include "link/engine.h"
#include "link/link.h"
#include "messages/messages.h"

namespace datadist {

Round::Round(Engine& engine, std::shared_ptr<Gates> gates, std::shared_ptr<const Layers> layers)
    : engine_(engine),
      gates_(std::move(gates)),
      layers_(std::move(layers)),
      status_(std::make_shared<Status>(gates_->status, gates_->graph_status)),
      is_open_(layers_->size(), false),
      pushes_(layers_->size()),
      waits_(layers_->size()) {
  marks_.reserve(kMarks);
}

void Round::connect(std::vector<std::shared_ptr<Transfer>> tasks,
                    std::vector<std::shared_ptr<Ticket>> tickets, std::set<int64_t> open_layers,
                    std::chrono::milliseconds timeout) {
  if (!tickets.empty()) wait_round_ = std::make_shared<WaitRound>(status_);
  if (is_for_graphs()) make_relays(!tasks.empty());
  size_t bound_tickets = 0;
  size_t bound_tasks = 0;
  try {
    for (; bound_tickets < tickets.size(); ++bound_tickets)
      tickets[bound_tickets]->bind(status_, wait_round_, timeout, "bind");
    for (; bound_tasks < tasks.size(); ++bound_tasks) {
      tasks[bound_tasks]->bind(status_, timeout, open_layers, "bind");
      tasks[bound_tasks]->submit(false, "bind");
    }
  } catch (...) {
    for (size_t i = 0; i < bound_tasks; ++i)
      tasks[i]->cancel("another transfer of the same bind was refused");
    for (size_t i = 0; i < bound_tickets; ++i) tickets[i]->unbind();
    throw;
  }
  if (wait_round_ != nullptr) wait_round_->all_is_bound();
  is_connected_ = true;
  tasks_ = std::move(tasks);
  tickets_ = std::move(tickets);
  for (size_t i = 0; i < pushes_.size(); ++i) {
    const int64_t layer = (*layers_)[i];
    is_open_[i] = open_layers.count(layer) > 0;
    const auto carries = [&](const auto& task) { return task->carries(layer); };
    pushes_[i].is_needed = !is_open_[i] && std::any_of(tasks_.begin(), tasks_.end(), carries);
  }
  if (is_for_graphs()) serve_graphs();
}

void Round::make_relays(bool for_tasks) {
  Feeder& feeder = engine_.local_feeder();
  if (for_tasks && push_relay_ == nullptr) {
    push_relay_ = std::make_shared<Relay>(feeder);
    finish_relay_ = std::make_shared<Relay>(feeder);
  }
  make_relay_for_waits();
}

void Round::make_relay_for_waits() {
  if (wait_round_ != nullptr) wait_round_->make_relay(engine_.local_feeder());
}

void Round::serve_graphs() {
  if (!is_connected_) return;
  if (!tasks_.empty()) relay_pushes();
  if (!tickets_.empty()) relay_waits();
  for (size_t i = 0; i < waits_.size(); ++i) {
    if (gates_->waits[i].is_captured && waits_[i].state == Wait::kShut) waits_[i].state = Wait::kAsked;
  }
  if (gates_->finish.is_captured) relay_finish();
}

void Round::relay_pushes() {
  std::vector<Step> steps;
  for (size_t i = 0; i < pushes_.size(); ++i) {
    if (!pushes_[i].is_needed) continue;
    const int64_t layer = (*layers_)[i];
    char* const released = gates_->pushes[i].released.address;
    steps.push_back({Step::kWait, released, nullptr, 1});
    pushes_[i].step = steps.size();
    steps.push_back({Step::kWrite, released, nullptr, 0});
    pushes_[i].is_relayed = true;
    for (const auto& task : tasks_) {
      if (task->carries(layer)) steps.push_back({Step::kWrite, task->start_gate(layer), nullptr, 1});
    }
  }
  push_relay_->start(std::move(steps));
}

void Round::relay_waits() {
  std::vector<Step> steps;
  std::vector<WaitRound::Opening> openings;
  std::vector<std::shared_ptr<Ticket>> awaited;
  for (const auto& ticket : tickets_) {
    if (ticket->begin_relayed_wait()) awaited.push_back(ticket);
  }
  for (size_t i = 0; i < waits_.size(); ++i) {
    const int64_t layer = (*layers_)[i];
    if (is_open_[i]) continue;
    for (const auto& ticket : awaited) {
      steps.push_back(
          {Step::kWait, ticket->link().own_flag(ticket->use().slot, layer), nullptr, ticket->use().epoch});
    }
    openings.push_back({gates_->waits[i].opened, steps.size()});
    steps.push_back({Step::kWrite, gates_->waits[i].opened.address, nullptr, 1});
    waits_[i].state = Wait::kRelayed;
  }
  wait_round_->start(std::move(steps), std::move(openings));
}

// When somebody asks for it: a forward without the op does not hold up the next one until its bytes have
// left.
void Round::relay_finish() {
  if (finish_.state != Wait::kShut || !is_connected_) return;
  if (tasks_.empty()) {
    if (gates_->finish.is_captured) finish_.state = Wait::kAsked;
    return;
  }
  std::vector<Step> steps;
  for (const auto& task : tasks_) steps.push_back({Step::kWait, task->done_gate(), nullptr, 1});
  steps.push_back({Step::kWrite, gates_->finish.opened.address, nullptr, 1});
  finish_.state = Wait::kRelayed;
  finish_relay_->start(std::move(steps));
}

std::string Round::wait_span() const {
  std::string all;
  for (const auto& ticket : tickets_) all += join(" peer=", ticket->link().peer().name);
  return all;
}

std::string Round::finish_span() const {
  std::string all;
  for (const auto& task : tasks_) all += join(" peer=", task->link().peer().name);
  return all;
}

std::string Round::push_span(size_t layer) const {
  std::string all;
  for (const auto& task : tasks_) {
    if (task->carries((*layers_)[layer])) all += (all.empty() ? " " : "; ") + task->span((*layers_)[layer]);
  }
  return all;
}

OpSteps Round::only_status(const OpStream& stream) {
  was_called_ = was_called_ || !stream.captures;
  OpSteps steps;
  steps.status = stream.captures ? gates_->graph_status.address : gates_->status.address;
  steps.failed = engine_.failed_status();
  return steps;
}

OpSteps Round::without_gate(const OpStream& stream) {
  OpSteps steps = only_status(stream);
  if (stream.captures || gates_->belong_to_graphs) return steps;  // their words stay with the binding
  const auto is_its = [&](const Mark& mark) { return mark.stream == stream.raw; };
  auto mark = std::find_if(marks_.begin(), marks_.end(), is_its);
  if (mark == marks_.end()) {
    if (gates_->marks.size() == marks_.size()) gates_->marks.push_back(gates_->pool->take(1).front());
    mark = marks_.insert(mark, {stream.raw});
  }
  steps.mark = gates_->marks[mark - marks_.begin()].address;
  steps.mark_number = ++mark->last;
  steps.refused = refused_;
  return steps;
}

bool Round::marks_are_passed() const {
  for (size_t i = 0; i < marks_.size(); ++i) {
    if (gates_->marks[i].seen() < marks_[i].last) return refused_->load();
  }
  return true;
}

// What an eager op does without a relay; the transfers' words are theirs until the mark behind is passed.
OpSteps Round::start_tasks(size_t layer, const OpStream& stream) {
  OpSteps steps = without_gate(stream);
  Push& push = pushes_[layer];
  if (!push.is_needed) return steps;
  const int64_t number = (*layers_)[layer];
  for (const auto& task : tasks_) {
    if (task->carries(number)) steps.starts.push_back(task->start_gate_for(number));
  }
  push.is_queued = true;
  push.times = 1;
  return steps;
}

OpSteps Round::await_flags(size_t layer, const OpStream& stream) {
  Wait& wait = waits_[layer];
  if (tickets_.empty() || is_open_[layer] || is_repeated(wait, stream)) return without_gate(stream);
  OpSteps steps = without_gate(stream);
  for (const auto& ticket : tickets_) {
    if (!ticket->begin_wait()) continue;
    steps.awaited.push_back(
        {ticket->link().own_flag(ticket->use().slot, (*layers_)[layer]), ticket->use().epoch});
  }
  wait.times = 1;
  return steps;
}

OpSteps Round::await_tasks(const OpStream& stream) {
  if (tasks_.empty() || is_repeated(finish_, stream)) return without_gate(stream);
  OpSteps steps = without_gate(stream);
  for (const auto& task : tasks_) {
    steps.awaited.push_back({task->done_gate(), 1});
    steps.passed.push_back(task->passed_word_for_hold());
  }
  finish_.times = 1;
  return steps;
}

// The same wait once more on the same stream, which has it behind it already.
bool Round::is_repeated(Wait& wait, const OpStream& stream) {
  const bool is_first = !std::exchange(wait.is_queued, true);
  return std::exchange(wait.stream, stream.raw) == stream.raw && !is_first;
}

bool Round::all_layers_are_awaited() const {
  for (size_t i = 0; i < waits_.size(); ++i) {
    if (!is_open_[i] && !waits_[i].is_queued) return false;
  }
  return !refused_->load();
}

OpSteps Round::push(size_t layer, const OpStream& stream) {
  if (!stream.captures && !is_for_graphs()) return start_tasks(layer, stream);
  PushGate& gate = gates_->pushes[layer];
  if (stream.captures) {
    if (!gate.is_captured) pushes_[layer].times = times_passed();
    gate.is_captured = true;
  } else if ((pushes_[layer].is_relayed && !pushes_[layer].is_forced) || gate.is_captured) {
    pushes_[layer].is_queued = true;
  } else {
    return without_gate(stream);
  }
  OpSteps steps = only_status(stream);
  if (gates_->belong_to_graphs) steps.must_be_taken = gate.released.address;
  steps.released = gate.released.address;
  if (!stream.captures) steps.refused = refused_;
  return steps;
}

// A gate that is captured when the round's forward is through is not met in this round.
void Round::capture(WaitGate& gate, Wait& wait) {
  if (gate.is_captured) return;
  wait.times = times_passed();
  gate.is_captured = true;
  if (is_connected_ && wait.times == 0 && wait.state == Wait::kShut) wait.state = Wait::kAsked;
}

int Round::times_passed() const {
  int times = finish_.times;
  for (const Push& push : pushes_) times = std::max(times, push.times);
  for (const Wait& wait : waits_) times = std::max(times, wait.times);
  return times;
}

OpSteps Round::wait(size_t layer, const OpStream& stream) {
  if (!stream.captures && !is_for_graphs()) return await_flags(layer, stream);
  WaitGate& gate = gates_->waits[layer];
  Wait& wait = waits_[layer];
  if (stream.captures) capture(gate, wait);
  return pass(gate, wait, stream);
}

OpSteps Round::finish(const OpStream& stream) {
  if (!stream.captures && !is_for_graphs()) return await_tasks(stream);
  if (stream.captures && !gates_->finish.is_captured) {
    gates_->finish.is_captured = true;
    finish_.times = times_passed();
  }
  if (finish_.times == 0) relay_finish();
  return pass(gates_->finish, finish_, stream);
}

// By an op of a graph, or an eager one on gates that a graph knows.
OpSteps Round::pass(const WaitGate& gate, Wait& wait, const OpStream& stream) {
  if (!stream.captures) {
    if (wait.state == Wait::kShut) return without_gate(stream);
    wait.is_queued = true;
    wait.stream = stream.raw;
  }
  OpSteps steps = only_status(stream);
  steps.reached = gate.reached.address;
  steps.opened = gate.opened.address;
  if (!stream.captures) steps.refused = refused_;
  return steps;
}

void Round::require_host_memory(size_t layer, const char* asked) const {
  for (const auto& task : tasks_) {
    if (!(task->moves_host_memory() || !task->carries((*layers_)[layer])))
      refuse(Message::host_tensors_order_nothing, {{"asked", asked},
                                                   {"layer", (*layers_)[layer]},
                                                   {"value", "CPU tensors"},
                                                   {"device", engine_.device()}});
  }
}

void Round::push_from_host(size_t layer) {
  was_called_ = true;
  Push& push = pushes_[layer];
  if (is_for_graphs()) {
    if (!push.is_relayed || push.is_forced) return;
    push.is_asked = true;
  } else {
    if (!push.is_needed) return;
    const int64_t number = (*layers_)[layer];
    for (const auto& task : tasks_) {
      if (task->carries(number)) task->start_from_host(number);
    }
    push.times = 1;
  }
  push.is_queued = true;
}

bool Round::wait_on_host(size_t layer) {
  was_called_ = true;
  Wait& wait = waits_[layer];
  // A host has no stream to wait on: its gates are opened by a relay, which the watchdog watches.
  if (!is_for_graphs() && !tickets_.empty() && !std::exchange(relays_for_host_, true)) relay_waits();
  if (has_passed(layer) || wait.state == Wait::kShut) return true;
  wait.is_queued = true;
  wait.is_for_host = true;
  return false;
}

void Round::retire(const std::string& why, bool also_graphs) {
  if (also_graphs) {
    is_retired_from_graphs_ = true;
    if (wait_round_ != nullptr) wait_round_->give_up(why);
  }
  for (size_t i = 0; i < pushes_.size(); ++i) {
    const bool is_awaited = is_for_graphs() ? pushes_[i].is_relayed : pushes_[i].is_needed;
    if (!is_awaited || pushes_[i].is_queued || may_come(gates_->pushes[i].is_captured)) continue;
    for (const auto& task : tasks_) {
      if (task->carries((*layers_)[i]))
        task->cancel(render(Message::layer_was_not_pushed, {{"why", why}, {"value", (*layers_)[i]}}));
    }
  }
}

// What the words say is judged by what was known at the last look: a relay may have opened a gate and said so
// while this look was being taken.
bool Round::tick(const Tick& tick) {
  int forwards = std::max(look_at_pushes(tick), look_at(gates_->finish, finish_, tick));
  for (size_t i = 0; i < waits_.size(); ++i)
    forwards = std::max(forwards, look_at(gates_->waits[i], waits_[i], tick));
  let_pass(tick, forwards);
  look_at_relays(tick);
  if (wait_round_ != nullptr && marks_are_passed()) wait_round_->ops_have_passed(all_layers_are_awaited());
  if (refused_->load() && !std::exchange(told_refusal_, true)) {
    for (const auto& task : tasks_) task->cancel(render(Message::gate_was_refused, {{"value", "a gate"}}));
  }
  const bool has_suspect = finish_.is_suspect || std::any_of(waits_.begin(), waits_.end(),
                                                             [](const Wait& w) { return w.is_suspect; });
  return has_suspect || (forwards > (is_connected_ ? 1 : 0) && !is_over());
}

int Round::look_at(const WaitGate& gate, Wait& wait, const Tick& tick) {
  const bool is_open = gate.opened.seen() != 0;
  const bool is_reached = gate.reached.seen() != 0;
  if (wait.state == Wait::kOpen && !is_open) {
    wait.state = Wait::kShut;
    wait.is_suspect = false;
    ++wait.times;
  }
  if (wait.is_for_host && is_open && !wait.host_has_passed) {
    tick.write(gate.opened, 0);
    wait.state = Wait::kShut;
    wait.host_has_passed = true;
    wait.times = std::max(wait.times, 1);
  }
  // A graph's stream stands at a gate that nothing will open: nobody bound its replay. One look may see words
  // of different moments; what it shows twice is so.
  const bool is_stuck = is_reached && !is_open && wait.state == Wait::kShut;
  const bool has_come = is_stuck && wait.is_suspect;
  wait.is_suspect = is_stuck;
  return wait.times + (has_come ? 1 : 0);
}

int Round::look_at_pushes(const Tick& tick) {
  int forwards = 0;
  for (size_t i = 0; i < pushes_.size(); ++i) {
    Push& push = pushes_[i];
    const PushGate& gate = gates_->pushes[i];
    if (!push.is_relayed && gate.released.seen() != 0) {
      tick.write(gate.released, 0);
      ++push.times;
    }
    forwards = std::max(forwards, push.times);
    if (push.is_asked) tick.write(gate.released, 1);
    push.is_asked = false;
    // Once its tasks have left their streams, nobody needs the push any more: the relay, which would wait for
    // it and keep this watch busy, goes on. (What they had queued behind the gate would go out else.)
    if (!push.is_relayed || push.is_queued || push.is_forced || may_come(gate.is_captured)) continue;
    const bool must_force = std::all_of(tasks_.begin(), tasks_.end(), [&](const auto& task) {
      return !task->carries((*layers_)[i]) || task->is_drained();
    });
    if (must_force) tick.write(gate.released, 1);
    push.is_forced = must_force;
  }
  return forwards;
}

// A replay that nobody bound goes through all gates, with an error, which is there first.
void Round::let_pass(const Tick& tick, int forwards) {
  if (forwards > (is_connected_ ? 1 : 0)) status_->set(tick, kParamInvalid);
  const auto open = [&](const WaitGate& gate, Wait& wait) {
    const bool is_asked = wait.state == Wait::kAsked;
    const bool is_stray = gate.is_captured && wait.state == Wait::kShut && wait.times < forwards &&
                          forwards > (is_connected_ ? 1 : 0);
    if (!is_asked && !is_stray) return;
    tick.write(gate.opened, 1);
    wait.state = Wait::kOpen;
    wait.is_suspect = false;
  };
  open(gates_->finish, finish_);
  for (size_t i = 0; i < waits_.size(); ++i) open(gates_->waits[i], waits_[i]);
}

void Round::look_at_relays(const Tick& tick) {
  // What a relay's end asks for is done whole: where the runtime refuses a write, the next look begins anew.
  if (push_relay_ != nullptr && !saw_push_relay_ && push_relay_->tick()) {
    const auto failure = push_relay_->failure();
    for (const auto& task : tasks_) {
      if (failure) task->cancel(render(Message::layers_were_not_released, {{"value", failure->second}}));
    }
    for (Push& push : pushes_) {
      if (!push.is_relayed) continue;
      if (!push.is_forced && push_relay_->did(push.step)) ++push.times;
      push.is_relayed = false;
    }
    saw_push_relay_ = true;
  }
  if (wait_round_ != nullptr && wait_round_->tick(tick)) {
    for (Wait& wait : waits_) {
      if (wait.state == Wait::kRelayed) wait.state = Wait::kOpen;
    }
  }
  if (finish_relay_ != nullptr && !saw_finish_relay_ && finish_relay_->tick()) {
    if (const auto failure = finish_relay_->failure()) {
      status_->set(tick, failure->first);
      tick.write(gates_->finish.opened, 1);
    }
    finish_.state = Wait::kOpen;
    saw_finish_relay_ = true;
  }
}

bool Round::is_over() const {
  const bool counts = !refused_->load();
  const int times = std::max(times_passed(), is_connected_ ? 1 : 0);
  const auto is_through = [&](bool is_captured, const auto& gate) {
    return gate.times >= (may_come(is_captured) ? times : (gate.is_queued && counts ? 1 : 0));
  };
  if (!is_through(gates_->finish.is_captured, finish_)) return false;
  for (size_t i = 0; i < waits_.size(); ++i) {
    if (!is_through(gates_->waits[i].is_captured, waits_[i])) return false;
    if (waits_[i].is_for_host && !has_passed(i)) return false;
    if (!is_through(gates_->pushes[i].is_captured, pushes_[i])) return false;
  }
  return true;
}

bool Round::is_gone() const {
  const auto is_idle = [](const auto& relay, bool was_seen) {
    return relay == nullptr || was_seen || !relay->has_started();
  };
  return is_over() && marks_are_passed() && is_idle(push_relay_, saw_push_relay_) &&
         is_idle(finish_relay_, saw_finish_relay_) && (wait_round_ == nullptr || wait_round_->is_idle());
}

void Round::sweep(const Tick& tick) {
  const auto shut = [&](const WaitGate& gate) {
    if (gate.opened.seen() != 0) tick.write(gate.opened, 0);
  };
  shut(gates_->finish);
  for (const WaitGate& gate : gates_->waits) shut(gate);
  for (const PushGate& gate : gates_->pushes) {
    if (!gate.is_captured && gate.released.seen() != 0) tick.write(gate.released, 0);
  }
}

}  // namespace datadist
