#include "link/binding.h"

#include <algorithm>
#include <utility>

#include "error.h"

namespace datadist {
Binding::Binding(std::shared_ptr<Engine> engine, std::vector<int64_t> layers,
                 std::chrono::milliseconds timeout)
    : engine_(std::move(engine)),
      layers_(std::move(layers)),
      timeout_(timeout),
      opened_(engine_->words().take()),
      status_(std::make_shared<Status>(&engine_->words())) {
  require(!layers_.empty(), kParamInvalid,
          "Binding: layers is empty; the layers that the forward's ops name were expected");
  for (const int64_t layer : layers_) ready_[layer] = engine_->words().take();
}

Binding::~Binding() = default;

void Binding::check(const std::vector<std::shared_ptr<Transfer>>& tasks,
                    const std::vector<std::shared_ptr<Ticket>>& tickets,
                    const std::set<int64_t>& open) const {
  const auto uses = [&](int64_t layer) {
    return std::find(layers_.begin(), layers_.end(), layer) != layers_.end();
  };
  for (const int64_t layer : open) {
    require(uses(layer), kParamInvalid, "bind: open_layers names layer ", layer,
            ", which is not a layer of binding ", number_);
  }
  for (const auto& ticket : tickets) {
    require(&ticket->link().engine() == engine_.get(), kParamInvalid, "bind: the ticket from ",
            ticket->link().peer().name, " arrives on npu:", ticket->link().engine().device(), ", binding ",
            number_, " is on npu:", device());
  }
  for (const auto& task : tasks) {
    require(&task->link().engine() == engine_.get(), kParamInvalid, "bind: the task to ",
            task->link().peer().name, " sends from npu:", task->link().engine().device(), ", binding ",
            number_, " is on npu:", device());
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
  const auto deadline = Clock::now() + timeout;
  std::vector<std::shared_ptr<Ticket>> tickets;
  for (const int64_t number : numbers) tickets.push_back(find_ticket(number, "bind", deadline));
  const std::set<int64_t> open(open_layers.begin(), open_layers.end());
  check(tasks, tickets, open);

  std::lock_guard lock(mutex_);
  // The watchdog has yet to open gates of the last round: a later value must not meet its earlier one.
  while (waits_ != nullptr && waits_->is_broken()) {
    require(engine_->wait_for_tick(deadline), kTimeout,
            "bind: the last forward's gates were not released in time");
  }
  // An error of the last forward may still be on its way to the caller's status: that word stays as it is.
  if (status_->is_set()) {
    replaced_.push_back(status_);
    status_ = std::make_shared<Status>(&engine_->words());
  }
  std::vector<WaitRound::LayerGate> gates;
  for (const int64_t layer : layers_) {
    if (open.count(layer) == 0) gates.push_back({layer, ready_[layer]});
  }
  auto waits = std::make_shared<WaitRound>(std::move(gates), round_ + 1, opened_, status_);
  auto lane = tickets.empty() ? nullptr : lane_for_waits();

  size_t bound_tickets = 0;
  size_t bound_tasks = 0;
  try {
    for (; bound_tickets < tickets.size(); ++bound_tickets)
      tickets[bound_tickets]->bind(status_, waits, timeout, "bind");
    for (; bound_tasks < tasks.size(); ++bound_tasks) {
      tasks[bound_tasks]->bind(status_, timeout, open, "bind");
      tasks[bound_tasks]->submit(false, "bind");
    }
  } catch (...) {
    for (size_t i = 0; i < bound_tasks; ++i)
      tasks[i]->cancel("another transfer of the same bind was refused");
    for (size_t i = 0; i < bound_tickets; ++i) tickets[i]->unbind();
    throw;
  }
  ++round_;
  tasks_ = std::move(tasks);
  open_ = open;
  pushed_.clear();
  was_bound_ = true;
  has_waits_ = !tickets.empty();
  if (!has_waits_) return;

  std::vector<Step> steps;
  size_t opened = 0;
  for (const int64_t layer : layers_) {
    if (open_.count(layer) > 0) continue;
    for (const auto& ticket : tickets) {
      steps.push_back(
          {Step::kWait, ticket->link().own_flag(ticket->use().slot, layer), nullptr, ticket->use().epoch});
    }
    steps.push_back({Step::kWrite, ready_[layer].address, nullptr, round_});
    steps.push_back({Step::kWrite, opened_.address, nullptr, waits->opened_value(++opened)});
  }
  waits_ = waits;
  engine_->watch(waits);
  waits->submit(engine_->local_feeder(), std::move(lane), std::move(steps));
}

std::shared_ptr<Lane> Binding::lane_for_waits() {
  if (lane_ == nullptr || lane_->is_dropped()) lane_ = engine_->local_feeder().take_lane(SIZE_MAX);
  require(lane_ != nullptr, kFailed, "bind: device ", device(), " is shut down");
  return lane_;
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
  gates.failed = engine_->failed_status();
  gates.op_word = mark.word.address;
  gates.op_number = ++mark.last;
  return gates;
}

std::vector<std::shared_ptr<Transfer>> Binding::take_push(int64_t layer) {
  require(tasks_.empty() || pushed_.insert(layer).second, kParamInvalid, "push_layer: layer ", layer,
          " of binding ", number_, " was pushed before in this forward; push it once, after its last write");
  std::vector<std::shared_ptr<Transfer>> senders;
  for (const auto& task : tasks_) {
    if (task->carries(layer) && open_.count(layer) == 0) senders.push_back(task);
  }
  return senders;
}

Binding::Gates Binding::push_layer(int64_t layer, aclrtStream stream) {
  std::lock_guard lock(mutex_);
  require_layer(layer, "push_layer");
  const auto senders = take_push(layer);
  Gates gates = gates_on(stream);
  for (const auto& task : senders) gates.writes.push_back(task->start_gate_for(layer));
  return gates;
}

Binding::Gates Binding::wait_layer(int64_t layer, aclrtStream stream) {
  std::lock_guard lock(mutex_);
  require_layer(layer, "wait_layer");
  Gates gates = gates_on(stream);
  if (has_waits_ && open_.count(layer) == 0) {
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

int64_t Binding::push_layer_from_host(int64_t layer) {
  std::lock_guard lock(mutex_);
  require_layer(layer, "push_layer");
  for (const auto& task : tasks_) {
    require(task->moves_host_memory() || !task->carries(layer), kParamInvalid, "push_layer: layer ", layer,
            " is sent from npu:", device(),
            ", and CPU tensors do not order a push after the kernels there; a "
            "status and an ordering tensor on npu:",
            device(), " were expected");
  }
  for (const auto& task : take_push(layer)) task->start_from_host(layer);
  return status_->code();
}

int64_t Binding::wait_layer_on_host(int64_t layer) {
  std::unique_lock lock(mutex_);
  require_layer(layer, "wait_layer");
  const auto waits = has_waits_ && open_.count(layer) == 0 ? waits_ : nullptr;
  const auto status = status_;
  lock.unlock();
  if (waits != nullptr) {
    engine_->wake();
    waits->wait_on_host(layer);
  }
  return status->code();
}

int64_t Binding::finish_on_host() {
  std::unique_lock lock(mutex_);
  require(was_bound_, kParamInvalid, "finish: binding ", number_, " was never bound");
  const auto tasks = std::exchange(tasks_, {});
  const auto status = status_;
  lock.unlock();
  engine_->wake();
  for (const auto& task : tasks) task->wait();
  return status->code();
}

bool Binding::streams_have_passed() {
  std::lock_guard lock(mutex_);
  for (const auto& [_, mark] : op_marks_) {
    if (mark.word.seen() < mark.last) return false;
  }
  return waits_ == nullptr || waits_->is_done();
}

void Binding::give_back() {
  std::lock_guard lock(mutex_);
  for (const auto& [_, word] : ready_) engine_->words().give_back(word);
  engine_->words().give_back(opened_);
  for (const auto& [_, mark] : op_marks_) engine_->words().give_back(mark.word);
  if (lane_) engine_->local_feeder().give_back_lane(lane_);
  status_.reset();
  replaced_.clear();
}

HandleTable<Binding>& bindings() {
  static auto* table = new HandleTable<Binding>("binding");
  return *table;
}

}  // namespace datadist
