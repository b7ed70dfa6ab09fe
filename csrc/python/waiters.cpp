// Host threads that wait for the transfer of an op.
#include "python/waiters.h"

#include <mutex>

#include "link/handles.h"
#include "link/transfer.h"
#include "messages/messages.h"
#include "python/module.h"

namespace datadist {
namespace {

struct Waiter {
  std::mutex mutex;
  std::shared_ptr<Transfer> transfer;
};

HandleTable<Waiter>& waiters() {
  static auto* table = new HandleTable<Waiter>("transfer");
  return *table;
}

std::shared_ptr<Transfer> take_transfer(int64_t handle) {
  const auto waiter = waiters().get(handle, "transfer_wait");
  waiters().remove(handle);
  std::shared_ptr<Transfer> transfer;
  {
    std::lock_guard lock(waiter->mutex);
    transfer.swap(waiter->transfer);
  }
  if (transfer == nullptr) refuse(Message::no_op_was_called, {{"value", handle}});
  return transfer;
}

std::pair<int64_t, std::string> transfer_wait(int64_t handle) { return take_transfer(handle)->wait(); }

// What failed and may still write is kept as a task.
std::tuple<int64_t, std::string, int64_t> transfer_outcome(int64_t handle, int64_t stream_timeout_ms) {
  auto transfer = take_transfer(handle);
  auto [code, why, is_in_doubt] = transfer->wait_for_outcome(std::chrono::milliseconds(stream_timeout_ms));
  return {code, std::move(why), is_in_doubt ? tasks().add(std::move(transfer)) : 0};
}

}  // namespace

void attach_waiter(int64_t handle, std::shared_ptr<Transfer> transfer) {
  const auto waiter = waiters().get(handle, "transfer");
  std::lock_guard lock(waiter->mutex);
  waiter->transfer = std::move(transfer);
}

void define_waiters(py::module_& m) {
  const auto nogil = py::call_guard<py::gil_scoped_release>();
  m.def("transfer_create", [] { return waiters().add(std::make_shared<Waiter>()); });
  m.def("transfer_free", [](int64_t transfer) { waiters().remove(transfer); }, py::arg("transfer"));
  m.def("transfer_wait", &transfer_wait, py::arg("transfer"), nogil);
  m.def("transfer_outcome", &transfer_outcome, py::arg("transfer"), py::arg("stream_timeout_ms"), nogil);
}

}  // namespace datadist
