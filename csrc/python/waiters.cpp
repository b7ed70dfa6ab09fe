// Host threads that wait for the transfer of an op.
#include "python/waiters.h"

#include <mutex>

#include "link/handles.h"
#include "link/transfer.h"
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

std::pair<int64_t, std::string> transfer_wait(int64_t handle) {
  const auto waiter = waiters().get(handle, "transfer_wait");
  waiters().remove(handle);
  std::shared_ptr<Transfer> transfer;
  {
    std::lock_guard lock(waiter->mutex);
    transfer.swap(waiter->transfer);
  }
  require(transfer != nullptr, kParamInvalid, "transfer_wait: no op was called with transfer=", handle);
  return transfer->wait();
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
}

}  // namespace datadist
