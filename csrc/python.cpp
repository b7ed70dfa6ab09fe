// The native interface of _C.pyi. Thin: every function converts, releases the GIL and calls down.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/extension.h>
#include <torch_npu/csrc/aten/common/from_blob.h>
#include <torch_npu/csrc/core/npu/NPUFunctions.h>

#include "acl/queue.h"
#include "cache/paged.h"
#include "link/binding.h"
#include "link/forked.h"
#include "link/instance.h"
#include "link/ticket.h"
#include "plan/copies.h"
#include "python_error.h"
#include "transport/mapped/host_memory.h"
#include "transport/mapped/mapped.h"

namespace py = pybind11;

namespace datadist {
namespace {

struct PythonError : torch::PyTorchError {
  PythonError(int64_t code, std::string message) : torch::PyTorchError(std::move(message)), code(code) {}
  PyObject* python_type() override {
    try {
      const py::object type = py::module_::import("torch_llm_datadist.errors").attr("class_for_code")(code);
      return type.ptr();  // borrowed: the module keeps its classes alive
    } catch (py::error_already_set& error) {
      error.restore();
      PyErr_Clear();
      return PyExc_RuntimeError;
    }
  }
  int64_t code;
};

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

bool is_at(const at::Tensor& tensor, int device) {
  return device < 0 ? tensor.device().is_cpu()
                    : tensor.device().is_privateuseone() && tensor.device().index() == device;
}

// What lies where, and how large a block of each tensor is. All on the instance's device, or all on the CPU.
std::vector<Place> check_cache_tensors(const std::vector<at::Tensor>& tensors, int device,
                                       Geometry* geometry) {
  require(!tensors.empty() && geometry->num_blocks >= 1, kParamInvalid, "register_cache: ", tensors.size(),
          " tensors of ", geometry->num_blocks, " blocks");
  const int where = tensors[0].device().is_cpu() ? -1 : device;
  std::vector<Place> places;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const at::Tensor& tensor = tensors[i];
    require(is_at(tensor, where), kParamInvalid, "register_cache: tensor ", i, " is on ",
            tensor.device().str(), "; npu:", device, ", or the CPU for all, was expected");
    require(tensor.is_contiguous(), kParamInvalid, "register_cache: tensor ", i, " is not contiguous");
    const auto bytes = static_cast<int64_t>(tensor.nbytes());
    require(bytes >= geometry->num_blocks && bytes % geometry->num_blocks == 0, kParamInvalid,
            "register_cache: the ", bytes, " bytes of tensor ", i, " are not ", geometry->num_blocks,
            " equal parts");
    geometry->strides.push_back(bytes / geometry->num_blocks);
    char* const address = static_cast<char*>(tensor.data_ptr());
    const bool is_pinned =
        where < 0 && acl::is_page_locked(address) && acl::is_page_locked(address + bytes - 1);
    places.push_back(
        {address, where >= 0 ? Reach::kDevice : (is_pinned ? Reach::kPinned : Reach::kPageable)});
  }
  return places;
}

int64_t register_cache(Instance& instance, const std::vector<at::Tensor>& tensors, int64_t num_blocks,
                       bool is_blocks) {
  Geometry geometry{num_blocks, is_blocks, {}};
  auto places = check_cache_tensors(tensors, instance.device(), &geometry);
  std::vector<std::shared_ptr<void>> storage;
  for (const at::Tensor& tensor : tensors)
    storage.push_back(std::make_shared<c10::Storage>(tensor.storage()));
  std::vector<uintptr_t> slabs(places.size(), 0);
  if (places.front().reach == Reach::kDevice) slabs = mapped::slabs_of(instance.device(), places);
  return instance.caches().add(std::move(geometry), std::move(places), std::move(slabs), std::move(storage));
}

std::vector<Exported> export_cache(Instance& instance, int64_t cache_id) {
  const auto cache = instance.caches().get(cache_id, "export_cache");
  // Of one kind: on the device, or all on the host.
  if (cache->tensors.front().reach == Reach::kDevice) {
    std::vector<char*> addresses;
    for (const Place& place : cache->tensors) addresses.push_back(place.address);
    return mapped::export_addresses(instance.device(), addresses);
  }
  std::vector<Exported> exported;
  for (const Place& place : cache->tensors) exported.push_back(mapped::export_host(place.address));
  return exported;
}

void add_remote_cache(Instance& instance, int64_t handle, int64_t cache_id, std::optional<uint64_t> model_id,
                      bool is_blocks, int64_t num_blocks, const std::vector<int64_t>& tensor_bytes,
                      const std::vector<Exported>& segments) {
  const auto link = instance.link(handle, "add_remote_cache");
  require(!segments.empty() && tensor_bytes.size() == segments.size() && num_blocks >= 1, kParamInvalid,
          "add_remote_cache: ", link->peer().name, " announced ", segments.size(), " tensors with ",
          tensor_bytes.size(), " sizes in ", num_blocks, " blocks");
  auto cache = std::make_shared<RemoteCache>();
  cache->id = cache_id;
  cache->model_id = model_id;
  cache->geometry = {num_blocks, is_blocks, {}};
  for (size_t i = 0; i < segments.size(); ++i) {
    const int64_t bytes = tensor_bytes[i];
    require(bytes >= num_blocks && bytes % num_blocks == 0 && segments[i].kind == segments[0].kind,
            kParamInvalid, "add_remote_cache: ", link->peer().name, " announced a tensor of ", bytes,
            " bytes in ", num_blocks, " blocks, or tensors in memory of different kinds");
    cache->geometry.strides.push_back(bytes / num_blocks);
  }
  cache->exports = segments;
  link->remote_caches().add(std::move(cache));
}

using TensorEnds = std::tuple<uintptr_t, uintptr_t, int64_t, uintptr_t, uintptr_t>;
using CopyOfRows = std::tuple<uintptr_t, uintptr_t, size_t, size_t, size_t, size_t>;

// What a transfer of blocks would queue, for tests and benchmarks.
std::vector<CopyOfRows> plan_copies(const std::vector<TensorEnds>& ends, const at::Tensor& src_blocks,
                                    const at::Tensor& dst_blocks, int64_t src_count, int64_t dst_count) {
  const at::Tensor src = src_blocks.contiguous();
  const at::Tensor dst = dst_blocks.contiguous();
  std::vector<Run> runs;
  plan_runs({src.const_data_ptr<int64_t>(), static_cast<size_t>(src.numel()), dst.const_data_ptr<int64_t>(),
             static_cast<size_t>(dst.numel()), src_count, dst_count},
            "plan_copies", &runs);
  std::vector<TensorPair> tensors;
  for (const auto& [src_at, dst_at, stride, src_slab, dst_slab] : ends) {
    tensors.push_back({reinterpret_cast<char*>(dst_at), reinterpret_cast<char*>(src_at), stride, stride,
                       stride, dst_slab, src_slab});
  }
  Copies copies;
  copies.begin(tensors.data(), tensors.size(), runs.data(), runs.size(), {});
  std::vector<CopyOfRows> found;
  for (Rows rows; copies.next(&rows);) {
    found.emplace_back(reinterpret_cast<uintptr_t>(rows.src), reinterpret_cast<uintptr_t>(rows.dst),
                       rows.width, rows.height, rows.src_pitch, rows.dst_pitch);
  }
  return found;
}

// No block ids at all: a batch entry to another one; only those of the destination: an entry to blocks.
int64_t prepare_push(int64_t handle, uint64_t model_id, const std::vector<at::Tensor>& cache,
                     const at::Tensor& src_blocks, const at::Tensor& dst_blocks, int64_t src_layer,
                     int64_t dst_layer, int64_t num_layers, int64_t tensors_per_layer, int64_t timeout_ms,
                     std::optional<int64_t> cache_id, int64_t src_batch, int64_t dst_batch, bool has_ticket) {
  const char* asked = "prepare_push";
  for (const at::Tensor* ids : {&src_blocks, &dst_blocks}) {
    require(
        ids->device().is_cpu() && ids->scalar_type() == at::kLong && ids->dim() == 1 && ids->is_contiguous(),
        kParamInvalid, asked, ": block ids are one-dimensional contiguous int64 CPU tensors");
  }
  TransferRequest request;
  request.asked = asked;
  for (const at::Tensor& tensor : cache) request.cache.push_back(static_cast<char*>(tensor.data_ptr()));
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
  TransferPlan plan = plan_transfer(*link, request);
  plan.timeout = std::chrono::milliseconds(timeout_ms);  // 0: what the binding says
  if (!has_ticket) {
    plan.by_layers = true;
    auto transfer = std::make_shared<Transfer>(link, std::move(plan), std::nullopt);
    link->engine().watch(transfer);
    return tasks().add(std::move(transfer));
  }
  const int64_t end = plan.remote_layers.first_layer + plan.remote_layers.layers;
  require(end <= static_cast<int64_t>(kLayers), kParamInvalid, asked, ": layer ", end - 1, " at ",
          link->peer().name, " has no arrival flag; layers 0 to ", kLayers - 1, " have");
  const SlotUse slot = link->take_slot(asked);
  auto transfer = std::make_shared<Transfer>(link, std::move(plan), slot);
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

void task_limit(int64_t task, int64_t timeout_ms) {
  require(timeout_ms > 0, kParamInvalid, "task_limit: timeout_ms = ", timeout_ms);
  tasks().get(task, "task_limit")->limit(std::chrono::milliseconds(timeout_ms));
}

constexpr auto kConfirmedWithin = std::chrono::seconds(5);

void ticket_discard(int64_t number) {
  if (was_discarded(number)) return;
  find_ticket(number, "discard", Clock::now() + kConfirmedWithin)->discard();
}

int64_t binding_create(int device, std::vector<int64_t> layers, int64_t timeout_ms) {
  auto binding =
      std::make_shared<Binding>(Engine::of(device), std::move(layers), std::chrono::milliseconds(timeout_ms));
  binding->engine().watch(binding);
  const int64_t number = bindings().add(binding);
  binding->set_number(number);
  return number;
}

void binding_bind(int64_t number, const std::vector<int64_t>& task_numbers,
                  const std::vector<int64_t>& tickets, const std::vector<int64_t>& open_layers,
                  int64_t timeout_ms) {
  const auto binding = bindings().get(number, "bind");
  std::vector<std::shared_ptr<Transfer>> bound;
  for (const int64_t task : task_numbers) bound.push_back(tasks().get(task, "bind"));
  binding->bind(std::move(bound), tickets, open_layers, std::chrono::milliseconds(timeout_ms));
}

void binding_unbind(int64_t number) { bindings().get(number, "unbind")->unbind(); }

void binding_destroy(int64_t number) {
  auto binding = bindings().remove(number);
  if (binding != nullptr) binding->close();
}

at::Tensor tensor_from_address(int64_t address, const std::vector<int64_t>& shape, at::ScalarType dtype,
                               int device) {
  require(address > 0, kParamInvalid, "tensor_from_address: address ", address);
  if (device < 0)
    return at::from_blob(reinterpret_cast<void*>(address), shape, at::TensorOptions().dtype(dtype));
  const c10::Device npu(c10::DeviceType::PrivateUse1, static_cast<c10::DeviceIndex>(device));
  const c10::DeviceGuard guard(npu);
  // torch_npu keeps a description in its storages, so a plain one is too small for it.
  return at_npu::native::from_blob(reinterpret_cast<void*>(address), shape, npu,
                                   at::TensorOptions().dtype(dtype).device(npu));
}

LinkOptions link_options(int64_t keep_alive_ms, int64_t transfer_timeout_ms, int64_t max_in_flight,
                         int64_t streams_per_link) {
  require(keep_alive_ms >= 100 && transfer_timeout_ms >= 1, kParamInvalid, "keep_alive_ms = ", keep_alive_ms,
          " (at least 100), transfer_timeout_ms = ", transfer_timeout_ms, " (at least 1)");
  return {std::chrono::milliseconds(keep_alive_ms), std::chrono::milliseconds(transfer_timeout_ms),
          static_cast<size_t>(max_in_flight), static_cast<size_t>(streams_per_link)};
}

}  // namespace

void throw_python_error(const Error& error) { throw PythonError(error.code(), error.what()); }

void attach_waiter(int64_t handle, std::shared_ptr<Transfer> transfer) {
  const auto waiter = waiters().get(handle, "transfer");
  std::lock_guard lock(waiter->mutex);
  waiter->transfer = std::move(transfer);
}

}  // namespace datadist

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  using namespace datadist;  // NOLINT
  const auto nogil = py::call_guard<py::gil_scoped_release>();
  m.attr("BUILT_FOR_TORCH_NPU") = BUILT_FOR_TORCH_NPU;
  py::register_exception_translator([](std::exception_ptr pointer) {
    try {
      if (pointer) std::rethrow_exception(pointer);
    } catch (const Error& error) {
      PythonError translated(error.code(), error.what());
      PyErr_SetString(translated.python_type(), translated.what());
    }
  });

  py::class_<Exported>(m, "Segment")
      .def(py::init([](const py::bytes& handle, int64_t offset, uint64_t address, int kind) {
             require(kind >= 0 && kind <= 2, kParamInvalid, "Segment: kind ", kind, ", expected 0 to 2");
             return Exported{std::string(handle), offset, address, static_cast<MemoryKind>(kind)};
           }),
           py::arg("handle"), py::arg("offset"), py::arg("address"), py::arg("kind") = 0)
      .def_property_readonly("handle", [](const Exported& segment) { return py::bytes(segment.handle); })
      .def_readonly("offset", &Exported::offset)
      .def_readonly("address", &Exported::address)
      .def_property_readonly("kind", [](const Exported& segment) { return static_cast<int>(segment.kind); });

  py::class_<Instance>(m, "Instance")
      .def(py::init([](int device, int64_t cluster_id, int64_t keep_alive_ms, int64_t transfer_timeout_ms,
                       int64_t max_in_flight, int64_t streams_per_link) {
             return std::make_unique<Instance>(
                 device, cluster_id,
                 link_options(keep_alive_ms, transfer_timeout_ms, max_in_flight, streams_per_link));
           }),
           py::arg("device"), py::arg("cluster_id"), py::kw_only(), py::arg("keep_alive_ms") = 3000,
           py::arg("transfer_timeout_ms") = 1000, py::arg("max_in_flight") = 256,
           py::arg("streams_per_link") = 64, nogil)
      .def("close", &Instance::close, nogil)
      .def("register_cache", &register_cache, py::arg("tensors"), py::arg("num_blocks"),
           py::arg("is_blocks") = true, nogil)
      .def("export_cache", &export_cache, py::arg("cache_id"), nogil)
      .def(
          "withdraw_cache", [](Instance& self, int64_t id) { self.caches().withdraw(id); },
          py::arg("cache_id"), nogil)
      .def(
          "is_cache_in_use",
          [](Instance& self, int64_t id) {
            return self.caches().get(id, "is_cache_in_use")->transfers->load() > 0;
          },
          py::arg("cache_id"), nogil)
      .def(
          "release_cache", [](Instance& self, int64_t id) { self.caches().release(id); }, py::arg("cache_id"))
      .def(
          "open_link",
          [](Instance& self, int64_t cluster_id, std::string name, int device, int pid, int64_t start_time,
             bool in_this_process) {
            const auto link =
                self.open_link({cluster_id, std::move(name), device, pid, start_time, in_this_process});
            try {
              return std::make_pair(link->handle(),
                                    mapped::export_addresses(self.device(), {link->page().address}).front());
            } catch (...) {
              self.close_link(link->handle());
              throw;
            }
          },
          py::arg("peer_cluster_id"), py::arg("peer_name"), py::arg("peer_device"), py::arg("peer_pid"),
          py::arg("peer_start_time"), py::arg("in_this_process"), nogil)
      .def(
          "connect_link",
          [](Instance& self, int64_t link, int64_t peer_link, const Exported& page) {
            self.link(link, "connect_link")->connect(peer_link, page);
          },
          py::arg("link"), py::arg("peer_link"), py::arg("peer_page"), nogil)
      .def("add_remote_cache", &add_remote_cache, py::arg("link"), py::arg("cache_id"), py::arg("model_id"),
           py::arg("is_blocks"), py::arg("num_blocks"), py::arg("tensor_bytes"), py::arg("segments"), nogil)
      .def(
          "drop_remote_cache",
          [](Instance& self, int64_t link, int64_t id) {
            self.link(link, "drop_remote_cache")->remote_caches().drop(id);
          },
          py::arg("link"), py::arg("cache_id"), nogil)
      .def(
          "is_remote_cache_in_use",
          [](Instance& self, int64_t link, int64_t id) {
            return self.link(link, "is_remote_cache_in_use")->remote_caches().is_in_use(id);
          },
          py::arg("link"), py::arg("cache_id"), nogil)
      .def(
          "link_status",
          [](Instance& self, int64_t handle) {
            const auto link = self.link(handle, "link_status");
            const auto [code, why] = link->end();
            return std::make_tuple(link->is_alive(), code, why);
          },
          py::arg("link"), nogil)
      .def("close_link", &Instance::close_link, py::arg("link"), nogil);

  m.def("plan_copies", &plan_copies, py::arg("tensors"), py::arg("src_blocks"), py::arg("dst_blocks"),
        py::arg("src_count"), py::arg("dst_count"), nogil);
  m.def("transfer_create", [] { return waiters().add(std::make_shared<Waiter>()); });
  m.def("transfer_free", [](int64_t transfer) { waiters().remove(transfer); }, py::arg("transfer"));
  m.def("transfer_wait", &transfer_wait, py::arg("transfer"), nogil);
  m.def("prepare_push", &prepare_push, py::arg("link"), py::arg("model_id"), py::arg("cache"),
        py::arg("src_blocks"), py::arg("dst_blocks"), py::arg("src_layer"), py::arg("dst_layer"),
        py::arg("num_layers"), py::arg("tensors_per_layer"), py::arg("timeout_ms"),
        py::arg("cache_id") = std::nullopt, py::arg("src_batch") = 0, py::arg("dst_batch") = 0,
        py::arg("has_ticket") = true, nogil);
  m.def(
      "task_ticket", [](int64_t task) { return tasks().get(task, "task_ticket")->ticket(); }, py::arg("task"),
      nogil);
  m.def(
      "task_state", [](int64_t task) { return tasks().get(task, "task_state")->state(); }, py::arg("task"),
      nogil);
  m.def("poll", &poll, py::arg("tasks"), py::arg("tickets"), nogil);
  m.def("task_wait", &task_wait, py::arg("task"), nogil);
  m.def("task_wait_for", &task_wait_for, py::arg("task"), py::arg("timeout_ms"), nogil);
  m.def("task_limit", &task_limit, py::arg("task"), py::arg("timeout_ms"), nogil);
  m.def(
      "task_cancel",
      [](int64_t task, const std::string& why) { tasks().get(task, "task_cancel")->cancel(why); },
      py::arg("task"), py::arg("why"), nogil);
  m.def(
      "task_discard", [](int64_t task) { tasks().get(task, "discard")->discard("discard"); }, py::arg("task"),
      nogil);
  m.def("task_free", &task_free, py::arg("task"), nogil);
  m.def("ticket_state", &ticket_state, py::arg("ticket"), nogil);
  m.def("ticket_discard", &ticket_discard, py::arg("ticket"), nogil);
  m.def("binding_create", &binding_create, py::arg("device"), py::arg("layers"), py::arg("timeout_ms"),
        nogil);
  m.def("binding_bind", &binding_bind, py::arg("binding"), py::arg("tasks"), py::arg("tickets"),
        py::arg("open_layers"), py::arg("timeout_ms"), nogil);
  m.def("binding_unbind", &binding_unbind, py::arg("binding"), nogil);
  m.def("binding_destroy", &binding_destroy, py::arg("binding"), nogil);
  m.def(
      "paged_open",
      [](std::vector<at::Tensor> tensors) {
        return paged_caches().add(std::make_shared<PagedCache>(std::move(tensors)));
      },
      py::arg("tensors"), nogil);
  m.def("paged_close", [](int64_t handle) { paged_caches().remove(handle); }, py::arg("handle"), nogil);
  m.def("tensor_from_address", &tensor_from_address, py::arg("address"), py::arg("shape"), py::arg("dtype"),
        py::arg("device"), nogil);
  m.def("allocate_shared_host", &mapped::allocate_shared_host, py::arg("device"), py::arg("bytes"), nogil);
  m.def(
      "require_not_forked", [](const std::string& asked) { require_not_forked(asked.c_str()); },
      py::arg("asked"));
  m.def("stop_all", &Engine::stop_all, nogil);
}
