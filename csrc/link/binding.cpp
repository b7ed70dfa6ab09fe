#include "link/binding.h"

#include <algorithm>

#include "error.h"
#include "link/link.h"
#include "messages/messages.h"

namespace datadist {

Binding::Binding(std::shared_ptr<Engine> engine, std::vector<int64_t> layers,
                 std::chrono::milliseconds timeout)
    : engine_(std::move(engine)),
      layers_(std::make_shared<const Round::Layers>(std::move(layers))),
      timeout_(timeout) {
  if (layers_->empty())
    refuse(Message::bad_value, {{"name", "Binding: layers"},
                                {"value", "empty"},
                                {"expected", "the layers that the forward's ops name"}});
  for (const int64_t layer : *layers_) {
    if (!index_.emplace(layer, index_.size()).second)
      refuse(Message::bad_value, {{"name", "Binding: layers"},
                                  {"value", join("a list that has ", layer, " twice")},
                                  {"expected", "each layer once"}});
  }
  next_gates_ = std::make_shared<Gates>(&engine_->words(), layers_->size());
}

void Binding::check(const std::vector<std::shared_ptr<Transfer>>& tasks,
                    const std::vector<std::shared_ptr<Ticket>>& tickets,
                    const std::set<int64_t>& open) const {
  for (const int64_t layer : open) {
    if (index_.count(layer) <= 0)
      refuse(Message::open_layer_outside, {{"value", layer}, {"binding", number_}});
  }
  for (const auto& ticket : tickets) {
    ticket->require_push("bind");
    if (&ticket->link().engine() != engine_.get())
      refuse(Message::binding_on_another_device,
             {{"what", join("the ticket from ", ticket->link().peer().name, " arrives")},
              {"value", ticket->link().engine().device()},
              {"binding", number_},
              {"device", device()}});
  }
  for (const auto& task : tasks) {
    if (&task->link().engine() != engine_.get())
      refuse(Message::binding_on_another_device,
             {{"what", join("the task to ", task->link().peer().name, " sends")},
              {"value", task->link().engine().device()},
              {"binding", number_},
              {"device", device()}});
    for (int64_t layer = task->first_layer(); layer < task->first_layer() + task->layers(); ++layer) {
      if (index_.count(layer) <= 0)
        refuse(Message::layer_is_never_sent, {{"value", layer}, {"binding", number_}});
    }
  }
  for (const int64_t layer : *layers_) {
    for (const auto& ticket : tickets) {
      if (!(ticket->carries(layer) || open.count(layer) > 0))
        refuse(Message::layer_never_comes, {{"binding", number_},
                                            {"value", layer},
                                            {"peer", ticket->link().peer().name},
                                            {"first", ticket->first_layer()},
                                            {"last", ticket->last_layer()}});
    }
  }
}

void Binding::bind(std::vector<std::shared_ptr<Transfer>> tasks, const std::vector<int64_t>& numbers,
                   const std::vector<int64_t>& open_layers, std::chrono::milliseconds timeout) {
  if (timeout.count() <= 0) timeout = timeout_;
  const auto deadline = Clock::now() + timeout;
  std::vector<std::shared_ptr<Ticket>> tickets;
  for (const int64_t number : numbers) tickets.push_back(find_ticket(number, "bind", deadline));
  std::set<int64_t> open(open_layers.begin(), open_layers.end());
  check(tasks, tickets, open);

  std::lock_guard alone(bind_mutex_);
  std::shared_ptr<Gates> gates;
  {
    std::lock_guard lock(mutex_);
    gates = graph_gates_ != nullptr ? graph_gates_ : next_gates_;
  }
  if (gates->belong_to_graphs) wait_for_last_replay(deadline);
  // Without the lock: what takes words may allocate, and an allocator that is short of memory waits for
  // streams, which may wait for the watchdog.
  auto round = std::make_shared<Round>(*engine_, gates, layers_);
  try {
    round->connect(std::move(tasks), std::move(tickets), std::move(open), timeout);
  } catch (...) {
    round->detach_status();
    std::lock_guard lock(mutex_);
    wants_gates_ = has_gates_ = false;
    throw;
  }
  auto next_gates = gates->belong_to_graphs ? nullptr : std::make_shared<Gates>(gates->pool, layers_->size());
  {
    std::lock_guard lock(mutex_);
    if (next_gates != nullptr) next_gates_ = std::move(next_gates);
    replace_round(std::move(round));
    wants_gates_ = has_gates_ = is_armed_ = false;
  }
  // Eager ops need nothing of the watchdog.
  if (gates->belong_to_graphs || !open_layers.empty())
    engine_->wake();
  else
    engine_->wake_soon();
}

void Binding::wait_for_last_replay(Clock::time_point deadline) {
  {
    std::lock_guard lock(mutex_);
    round_->retire("its binding was bound again", false);
    wants_gates_ = true;
    are_cleared_ = has_gates_ = false;
  }
  while (true) {
    const bool in_time = engine_->wait_for_tick(deadline);
    std::lock_guard lock(mutex_);
    if (has_gates_) return;
    if (in_time) continue;
    wants_gates_ = false;
    refuse(Message::last_replay_is_late, {{"value", number_}});
  }
}

// With the lock held.
void Binding::replace_round(std::shared_ptr<Round> round) {
  if (round_ != nullptr && !round_->gates()->belong_to_graphs) {
    round_->retire("its binding was bound again", false);
    past_.push_back(std::move(round_));
  } else if (round_ != nullptr) {
    round_->detach_status();
  }
  round_ = std::move(round);
}

void Binding::unbind() {
  std::lock_guard alone(bind_mutex_);
  {
    std::lock_guard lock(mutex_);
    if (round_ == nullptr) return;
    round_->retire("it was unbound", true);
    if (!round_->gates()->belong_to_graphs) past_.push_back(std::exchange(round_, nullptr));
  }
  engine_->wake();
}

void Binding::close() {
  {
    std::lock_guard lock(mutex_);
    is_closed_ = true;
    if (round_ != nullptr) {
      round_->retire("its binding was closed", false);
      if (!round_->gates()->belong_to_graphs) past_.push_back(std::exchange(round_, nullptr));
    }
  }
  engine_->wake();
}

size_t Binding::index_of(int64_t layer, const char* asked) const {
  const auto found = index_.find(layer);
  if (found == index_.end())
    refuse(Message::no_layer_of_binding, {{"asked", asked},
                                          {"value", layer},
                                          {"binding", number_},
                                          {"count", layers_->size()},
                                          {"first", layers_->front()},
                                          {"last", layers_->back()}});
  return found->second;
}

// From the first op that is captured on, the gates are those of graphs. A graph needs no round yet: the first
// bind after the capture connects it. But what was bound before the capture, and met no op so far, serves the
// first replay, since compilers capture and replay in one call.
//
// The lock is held until the op is captured: a bind that connects a round meanwhile would miss its gate.
std::unique_lock<std::mutex> Binding::begin_capture(const char* asked, const OpStream& stream) {
  if (!stream.captures) return {};
  std::unique_lock alone(bind_mutex_, std::try_to_lock);
  if (!alone.owns_lock()) refuse(Message::binding_is_captured, {{"asked", asked}, {"value", number_}});
  std::shared_ptr<Round> bound;
  {
    std::lock_guard lock(mutex_);
    if (graph_gates_ != nullptr) return alone;
    if (round_ != nullptr && round_->is_untouched()) bound = round_;
  }
  if (bound != nullptr) bound->make_relays();
  {
    std::lock_guard lock(mutex_);
    if (round_ == nullptr || !round_->is_untouched())
      replace_round(std::make_shared<Round>(*engine_, next_gates_, layers_));
    graph_gates_ = round_->gates();
    graph_gates_->belong_to_graphs = true;
    round_->serve_graphs();
  }
  // A replay that comes at once must find the error of one that nobody bound.
  const auto patience = Clock::now() + std::chrono::seconds(1);
  for (int looks = 0; looks < 2 && engine_->wait_for_tick(patience); ++looks) {
  }
  return alone;
}

Round& Binding::round_for_op(const char* asked, const OpStream& stream) const {
  if (!(stream.captures || (round_ != nullptr && round_->is_connected())))
    refuse(Message::binding_is_not_bound, {{"asked", asked}, {"value", number_}});
  return *round_;
}

OpSteps Binding::push_layer(int64_t layer, const OpStream& stream) {
  const auto alone = begin_capture("push_layer", stream);
  std::lock_guard lock(mutex_);
  Round& round = round_for_op("push_layer", stream);
  const size_t index = index_of(layer, "push_layer");
  if (!stream.captures) require_first_push(round, index);
  return round.push(index, stream);
}

void Binding::require_first_push(const Round& round, size_t index) const {
  if (!(!round.has_tasks() || !round.was_pushed(index)))
    refuse(Message::layer_was_pushed, {{"value", (*layers_)[index]}, {"binding", number_}});
}

OpSteps Binding::wait_layer(int64_t layer, const OpStream& stream) {
  const auto alone = begin_capture("wait_layer", stream);
  std::lock_guard lock(mutex_);
  Round& round = round_for_op("wait_layer", stream);
  return round.wait(index_of(layer, "wait_layer"), stream);
}

OpSteps Binding::finish(const OpStream& stream) {
  const auto alone = begin_capture("finish", stream);
  std::lock_guard lock(mutex_);
  return round_for_op("finish", stream).finish(stream);
}

std::string Binding::push_span(int64_t layer) const {
  std::lock_guard lock(mutex_);
  const auto found = index_.find(layer);
  const bool is_known = round_ != nullptr && found != index_.end();
  return join("push_layer layer=", layer, is_known ? round_->push_span(found->second) : "");
}

std::string Binding::wait_span(int64_t layer) const {
  std::lock_guard lock(mutex_);
  return join("wait_layer layer=", layer, round_ != nullptr ? round_->wait_span() : "");
}

std::string Binding::finish_span() const {
  std::lock_guard lock(mutex_);
  return join("finish", round_ != nullptr ? round_->finish_span() : "");
}

int64_t Binding::push_layer_from_host(int64_t layer) {
  std::lock_guard lock(mutex_);
  Round& round = round_for_op("push_layer", {});
  const size_t index = index_of(layer, "push_layer");
  round.require_host_memory(index, "push_layer");
  require_first_push(round, index);
  round.push_from_host(index);
  engine_->wake();
  return round.code();
}

int64_t Binding::wait_layer_on_host(int64_t layer) {
  const size_t index = index_of(layer, "wait_layer");
  std::unique_lock lock(mutex_);
  round_for_op("wait_layer", {});
  auto round = round_;
  for (std::shared_ptr<Round> ready; ready != round; round = round_) {
    ready = round;
    lock.unlock();
    ready->make_relay_for_waits();
    lock.lock();
    round_for_op("wait_layer", {});
  }
  if (round->wait_on_host(index)) return round->code();
  engine_->wake();
  passed_.wait(lock, [&] { return round->has_passed(index) || is_abandoned_; });
  return is_abandoned_ ? static_cast<int64_t>(kFailed) : round->code();
}

int64_t Binding::finish_on_host() {
  std::unique_lock lock(mutex_);
  const auto tasks = round_for_op("finish", {}).tasks();
  const auto round = round_;
  lock.unlock();
  engine_->wake();
  int64_t code = kSuccess;
  for (const auto& task : tasks) {
    const int64_t ended_with = task->wait().first;
    if (code == kSuccess) code = ended_with;
  }
  // Without a watchdog nobody writes the round's status.
  return round->code() != kSuccess ? round->code() : code;
}

void Binding::abandon() {
  {
    std::lock_guard lock(mutex_);
    is_abandoned_ = true;
  }
  passed_.notify_all();
}

bool Binding::tick(const Tick& tick) {
  std::lock_guard lock(mutex_);
  passed_.notify_all();  // of this look
  for (const auto& round : past_) {
    round->tick(tick);
    if (round->is_gone()) round->detach_status();  // its words go back; its tasks may still fail
  }
  std::erase_if(past_, [](const auto& round) { return round->is_gone(); });
  bool is_busy = !past_.empty();
  if (round_ == nullptr || has_gates_) return is_busy || has_gates_;
  is_busy = round_->tick(tick) || is_busy;
  return (graph_gates_ != nullptr && tick_graph_gates(tick)) || is_busy;
}

bool Binding::tick_graph_gates(const Tick& tick) {
  if (!round_->is_over() || !round_->is_gone()) {
    are_cleared_ = false;
    return wants_gates_;
  }
  if (!wants_gates_) {
    if (!is_armed_)
      tick.write(graph_gates_->graph_status, static_cast<uint32_t>(status_value(kParamInvalid)));
    is_armed_ = true;
    return false;
  }
  // Cleared at one look and seen to be so at the next.
  if (are_cleared_ && graph_gates_->are_shut()) {
    has_gates_ = true;
    return true;
  }
  round_->detach_status();
  round_->sweep(tick);
  tick.write(graph_gates_->status, 0);
  tick.write(graph_gates_->graph_status, 0);
  are_cleared_ = true;
  is_armed_ = false;
  return true;
}

bool Binding::is_gone() const {
  std::lock_guard lock(mutex_);
  return is_closed_ && past_.empty() && graph_gates_ == nullptr;
}

HandleTable<Binding>& bindings() {
  static auto* table = new HandleTable<Binding>("binding");
  return *table;
}

}  // namespace datadist
