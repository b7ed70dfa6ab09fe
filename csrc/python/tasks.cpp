// Tasks and tickets: prepared pushes, their states, what ends them.
#include "link/destination.h"
#include "link/instance.h"
#include "link/packed_push.h"
#include "link/ticket.h"
#include "link/transfer.h"
#include "messages/messages.h"
#include "python/tensors.h"

namespace datadist {
namespace {

// No block ids at all: a batch entry to another one; only those of the destination: an entry to blocks.
int64_t prepare_push(int64_t handle, uint64_t model_id, const std::vector<at::Tensor>& cache,
                     const at::Tensor& src_blocks, const at::Tensor& dst_blocks, int64_t src_layer,
                     int64_t dst_layer, int64_t num_layers, int64_t tensors_per_layer, int64_t timeout_ms,
                     std::optional<int64_t> cache_id, int64_t src_batch, int64_t dst_batch, bool has_ticket,
                     std::optional<bool> packed) {
  const char* asked = "prepare_push";
  for (const at::Tensor* ids : {&src_blocks, &dst_blocks}) {
    if (!(ids->device().is_cpu() && ids->scalar_type() == at::kLong && ids->dim() == 1 &&
          ids->is_contiguous()))
      refuse(Message::bad_value,
             {{"name", join(asked, ": block ids")},
              {"value", join(ids->scalar_type(), " of ", ids->dim(), " dimensions on ", ids->device().str())},
              {"expected", "one-dimensional contiguous int64 CPU tensors"}});
  }
  TransferRequest request;
  request.asked = asked;
  std::vector<char*> addresses;
  for (const at::Tensor& tensor : cache) addresses.push_back(static_cast<char*>(tensor.data_ptr()));
  request.cache = addresses;
  if (!cache.empty() && cache[0].dim() > 0) request.dimension_0 = cache[0].size(0);
  request.model_id = model_id;
  request.cache_id = cache_id;
  request.src_blocks = src_blocks.const_data_ptr<int64_t>();
  request.src_length = static_cast<size_t>(src_blocks.numel());
  request.dst_blocks = dst_blocks.const_data_ptr<int64_t>();
  request.dst_length = static_cast<size_t>(dst_blocks.numel());
  if (request.src_length == 0)
    request.layout = request.dst_length == 0 ? Layout::kEntry : Layout::kEntryToBlocks;
  request.src_entry = src_batch;
  request.dst_entry = dst_batch;
  request.src_layer = src_layer;
  request.dst_layer = dst_layer;
  request.num_layers = num_layers;
  request.tensors_per_layer = tensors_per_layer;
  request.timeout_ms = timeout_ms;
  const auto link = require_link(handle, asked);
  request.may_pack = has_ticket;
  TransferPlan plan = plan_transfer(*link, request);
  if (has_ticket) plan_packing(*link, request, packed, &plan);
  // What goes packed lands in staging, and the receiver says where from there.
  if (plan.way != TransferPlan::Way::kPacked) wait_until_settled(*link, plan, asked);
  plan.timeout = std::chrono::milliseconds(timeout_ms);  // 0: what the binding says
  if (!has_ticket) {
    plan.by_layers = true;
    auto transfer = make_kept<Transfer>(link, std::move(plan), std::nullopt);
    link->engine().watch(transfer);
    return tasks().add(std::move(transfer));
  }
  const int64_t end = plan.remote_layers.first_layer + plan.remote_layers.layers;
  if (end > static_cast<int64_t>(kLayers))
    refuse(Message::layer_has_no_flag,
           {{"asked", asked}, {"value", end - 1}, {"peer", link->peer().name}, {"count", kLayers - 1}});
  const SlotUse slot = link->take_slot(asked);
  auto transfer = make_kept<Transfer>(link, std::move(plan), slot);
  link->sends(slot, transfer);
  link->engine().watch(transfer);
  return tasks().add(std::move(transfer));
}

void task_free(int64_t task) {
  const auto transfer = tasks().remove(task);
  if (transfer != nullptr && !transfer->is_bound())
    transfer->cancel("the task was freed before it was bound");
}

using State = std::tuple<bool, int64_t, std::string>;

// A number that is none any more is a transfer that has ended: one bad one does not hide the others.
template <typename Ask>
std::vector<State> states(const std::vector<int64_t>& numbers, Ask ask) {
  std::vector<State> found;
  for (const int64_t number : numbers) {
    try {
      found.push_back(ask(number));
    } catch (const Error& error) {
      found.emplace_back(true, error.code(), error.what());
    }
  }
  return found;
}

std::pair<std::vector<State>, std::vector<State>> poll(const std::vector<int64_t>& task_numbers,
                                                       const std::vector<int64_t>& tickets) {
  return {states(task_numbers, [](int64_t task) { return tasks().get(task, "poll")->state(); }),
          states(tickets, [](int64_t ticket) { return ticket_state(ticket); })};
}

std::pair<int64_t, std::string> task_wait(int64_t task) { return tasks().get(task, "task_wait")->wait(); }

State task_wait_for(int64_t task, int64_t timeout_ms) {
  return tasks().get(task, "task_wait_for")->wait_until(Clock::now() + std::chrono::milliseconds(timeout_ms));
}

bool task_wait_drained(int64_t task, int64_t timeout_ms) {
  const auto transfer = tasks().get(task, "task_wait_drained");
  return transfer->wait_drained(Clock::now() + std::chrono::milliseconds(timeout_ms));
}

void task_limit(int64_t task, int64_t timeout_ms) {
  if (timeout_ms <= 0)
    refuse(Message::bad_value,
           {{"name", "task_limit: timeout_ms"}, {"value", timeout_ms}, {"expected", "more than 0"}});
  tasks().get(task, "task_limit")->limit(std::chrono::milliseconds(timeout_ms));
}

constexpr auto kConfirmedWithin = std::chrono::seconds(5);

void ticket_discard(int64_t number) {
  if (was_discarded(number)) return;
  find_ticket(number, "discard", Clock::now() + kConfirmedWithin)->discard();
}

State ticket_cancel(int64_t number, int64_t timeout_ms) {
  return cancel_ticket(number, Clock::now() + std::chrono::milliseconds(timeout_ms));
}

}  // namespace

void define_tasks(py::module_& m) {
  const auto nogil = py::call_guard<py::gil_scoped_release>();
  m.def("prepare_push", &prepare_push, py::arg("link"), py::arg("model_id"), py::arg("cache"),
        py::arg("src_blocks"), py::arg("dst_blocks"), py::arg("src_layer"), py::arg("dst_layer"),
        py::arg("num_layers"), py::arg("tensors_per_layer"), py::arg("timeout_ms"),
        py::arg("cache_id") = std::nullopt, py::arg("src_batch") = 0, py::arg("dst_batch") = 0,
        py::arg("has_ticket") = true, py::arg("packed") = std::nullopt, nogil);
  m.def(
      "task_ticket", [](int64_t task) { return tasks().get(task, "task_ticket")->ticket(); }, py::arg("task"),
      nogil);
  m.def(
      "task_state", [](int64_t task) { return tasks().get(task, "task_state")->state(); }, py::arg("task"),
      nogil);
  m.def("poll", &poll, py::arg("tasks"), py::arg("tickets"), nogil);
  m.def("task_wait", &task_wait, py::arg("task"), nogil);
  m.def("task_wait_for", &task_wait_for, py::arg("task"), py::arg("timeout_ms"), nogil);
  m.def("task_wait_drained", &task_wait_drained, py::arg("task"), py::arg("timeout_ms"), nogil);
  m.def("task_limit", &task_limit, py::arg("task"), py::arg("timeout_ms"), nogil);
  m.def(
      "task_cancel",
      [](int64_t task, const std::string& why) { tasks().get(task, "task_cancel")->cancel(why); },
      py::arg("task"), py::arg("why"), nogil);
  m.def(
      "task_discard", [](int64_t task) { tasks().get(task, "discard")->discard("discard"); }, py::arg("task"),
      nogil);
  m.def(
      "task_is_bound", [](int64_t task) { return tasks().get(task, "task_is_bound")->is_bound(); },
      py::arg("task"), nogil);
  m.def("task_free", &task_free, py::arg("task"), nogil);
  m.def("ticket_state", &ticket_state, py::arg("ticket"), nogil);
  m.def("ticket_cancel", &ticket_cancel, py::arg("ticket"), py::arg("timeout_ms"), nogil);
  m.def("ticket_discard", &ticket_discard, py::arg("ticket"), nogil);
}

}  // namespace datadist
