#include "link/binding.h"

#include <algorithm>

#include "error.h"

namespace datadist {
namespace {

// Waits for the flags of all tickets, layer by layer, and opens the binding's gate of each layer.
class WaitProgram : public Program {
 public:
  WaitProgram(std::vector<Step> steps, std::vector<std::shared_ptr<Ticket>> tickets,
              std::shared_ptr<Lane> lane)
      : steps_(std::move(steps)), tickets_(std::move(tickets)), lane_(std::move(lane)) {}

  bool next(Step* step) override {
    if (at_ == steps_.size()) return false;
    *step = steps_[at_++];
    return true;
  }

  void ended(uint64_t mark, int64_t, const std::string&) override {
    for (const auto& ticket : tickets_) ticket->waits_submitted(lane_, mark);
  }

 private:
  const std::vector<Step> steps_;
  const std::vector<std::shared_ptr<Ticket>> tickets_;
  const std::shared_ptr<Lane> lane_;
  size_t at_ = 0;
};

}  // namespace

Binding::Binding(std::shared_ptr<Engine> engine, std::vector<int64_t> layers,
                 std::chrono::milliseconds timeout)
    : engine_(std::move(engine)),
      layers_(std::move(layers)),
      timeout_(timeout),
      status_(std::make_shared<Status>(&engine_->words())) {
  require(!layers_.empty(), kParamInvalid,
          "Binding: layers is empty; the layers that the forward's ops name were expected");
  for (const int64_t layer : layers_) ready_[layer] = engine_->words().take();
}

Binding::~Binding() = default;

void Binding::check_layers(const std::vector<std::shared_ptr<Transfer>>& tasks,
                           const std::vector<std::shared_ptr<Ticket>>& tickets,
                           const std::set<int64_t>& open) const {
  const auto uses = [&](int64_t layer) {
    return std::find(layers_.begin(), layers_.end(), layer) != layers_.end();
  };
  for (const int64_t layer : open) {
    require(uses(layer), kParamInvalid, "bind: open_layers names layer ", layer,
            ", which is not a layer of binding ", number_);
  }
  for (const auto& task : tasks) {
    require(task->is_layered() && !task->is_bound(), kParamInvalid,
            "bind: the task was bound before; a task is sent once, prepare_push makes another");
    for (int64_t layer = task->first_layer(); layer < task->first_layer() + task->layers(); ++layer) {
      require(uses(layer), kParamInvalid, "bind: the task sends layer ", layer,
              ", which the forward of binding ", number_, " does not use; it would never be sent");
    }
  }
  for (const int64_t layer : layers_) {
    for (const auto& ticket : tickets) {
      require(ticket->carries(layer) || open.count(layer) > 0, kParamInvalid, "bind: the forward of binding ",
              number_, " waits for layer ", layer, ", but the ticket from ", ticket->link().peer().name,
              " carries layers ", ticket->first_layer(), " to ", ticket->last_layer(),
              " only; name the layer in open_layers if that is meant");
    }
  }
}

void Binding::bind(std::vector<std::shared_ptr<Transfer>> tasks, const std::vector<int64_t>& numbers,
                   const std::vector<int64_t>& open_layers, std::chrono::milliseconds timeout) {
  if (timeout.count() <= 0) timeout = timeout_;
  std::vector<std::shared_ptr<Ticket>> tickets;
  const auto deadline = Clock::now() + timeout;
  for (const int64_t number : numbers) tickets.push_back(find_ticket(number, "bind", deadline));
  const std::set<int64_t> open(open_layers.begin(), open_layers.end());
  check_layers(tasks, tickets, open);

  std::lock_guard lock(mutex_);
  // An error of the last forward may still be on its way to the caller's status: that word stays as it is.
  auto status = status_->is_set() ? std::make_shared<Status>(&engine_->words()) : status_;
  size_t bound = 0;
  for (const auto& ticket : tickets) ticket->bind(status, timeout, "bind");
  try {
    for (; bound < tasks.size(); ++bound) {
      tasks[bound]->bind(status, timeout);
      tasks[bound]->submit(false, "bind");
    }
  } catch (const Error&) {
    for (size_t i = 0; i < bound; ++i) tasks[i]->cancel("another task of the same bind was refused");
    for (const auto& ticket : tickets) ticket->unbind();
    throw;
  }
  status_ = std::move(status);
  tasks_ = std::move(tasks);
  tickets_ = std::move(tickets);
  open_ = open;
  was_bound_ = true;
  ++round_;
  for (const auto& task : tasks_) {
    for (const int64_t layer : open_) {
      if (task->carries(layer)) task->open_start_gate(layer);
    }
  }
  if (tickets_.empty()) return;

  std::vector<Step> steps;
  for (const int64_t layer : layers_) {
    if (open_.count(layer) > 0) continue;
    for (const auto& ticket : tickets_) {
      steps.push_back(
          {Step::kWait, ticket->link().own_flag(ticket->use().slot, layer), nullptr, ticket->use().epoch});
    }
    steps.push_back({Step::kWrite, ready_[layer].address, nullptr, round_});
  }
  if (lane_ == nullptr || lane_->is_dropped()) lane_ = engine_->local_feeder().take_lane(SIZE_MAX);
  require(lane_ != nullptr, kFailed, "bind: device ", device(), " is shut down");
  engine_->local_feeder().submit(lane_, std::make_unique<WaitProgram>(std::move(steps), tickets_, lane_));
}

void Binding::require_layer(int64_t layer, const char* asked) const {
  require(was_bound_, kParamInvalid, asked, ": binding ", number_,
          " was never bound; call binding.bind(tasks or tickets) before "
          "the forward, bind(()) for a forward without a transfer");
  require(ready_.count(layer) > 0, kParamInvalid, asked, ": layer ", layer, " is not a layer of binding ",
          number_, ", which was made for ", layers_.size(), " layers from ", layers_.front(), " to ",
          layers_.back());
}

Binding::Gates Binding::gates_on(aclrtStream stream) {
  StreamMark& mark = op_marks_[stream];
  if (mark.word.address == nullptr) mark.word = engine_->words().take();
  Gates gates;
  gates.status = status_->address();
  gates.status_holder = status_;
  gates.op_word = mark.word.address;
  gates.op_number = ++mark.last;
  return gates;
}

Binding::Gates Binding::push_layer(int64_t layer, aclrtStream stream) {
  std::lock_guard lock(mutex_);
  require_layer(layer, "push_layer");
  Gates gates = gates_on(stream);
  for (const auto& task : tasks_) {
    if (task->carries(layer) && open_.count(layer) == 0) gates.writes.push_back(task->start_gate_for(layer));
  }
  return gates;
}

Binding::Gates Binding::wait_layer(int64_t layer, aclrtStream stream) {
  std::lock_guard lock(mutex_);
  require_layer(layer, "wait_layer");
  Gates gates = gates_on(stream);
  if (!tickets_.empty() && open_.count(layer) == 0) {
    gates.waits.push_back(ready_[layer].address);
    gates.wait_value = round_;
  }
  return gates;
}

Binding::Gates Binding::finish(aclrtStream stream) {
  std::lock_guard lock(mutex_);
  require(was_bound_, kParamInvalid, "finish: binding ", number_, " was never bound");
  Gates gates = gates_on(stream);
  for (const auto& task : tasks_) {
    gates.waits.push_back(task->done_gate());
    gates.writes.push_back(task->passed_word_for_hold());
  }
  tasks_.clear();  // a second finish finds nothing to wait for, and the tasks may retire
  return gates;
}

bool Binding::streams_have_passed() {
  std::lock_guard lock(mutex_);
  for (const auto& [_, mark] : op_marks_) {
    if (mark.word.seen() < mark.last) return false;
  }
  return std::all_of(tickets_.begin(), tickets_.end(),
                     [](const auto& ticket) { return std::get<0>(ticket->state()); });
}

void Binding::give_back() {
  std::lock_guard lock(mutex_);
  for (const auto& [_, word] : ready_) engine_->words().give_back(word);
  for (const auto& [_, mark] : op_marks_) engine_->words().give_back(mark.word);
  if (lane_) engine_->local_feeder().give_back_lane(lane_);
  status_.reset();
}

HandleTable<Binding>& bindings() {
  static auto* table = new HandleTable<Binding>("binding");
  return *table;
}

}  // namespace datadist
