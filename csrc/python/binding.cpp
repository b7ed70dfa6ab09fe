// Bindings: what joins tasks and tickets to a forward.
#include "link/binding.h"

#include "python/module.h"

namespace datadist {
namespace {

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

}  // namespace

void define_bindings(py::module_& m) {
  const auto nogil = py::call_guard<py::gil_scoped_release>();
  m.def("binding_create", &binding_create, py::arg("device"), py::arg("layers"), py::arg("timeout_ms"),
        nogil);
  m.def("binding_bind", &binding_bind, py::arg("binding"), py::arg("tasks"), py::arg("tickets"),
        py::arg("open_layers"), py::arg("timeout_ms"), nogil);
  m.def("binding_unbind", &binding_unbind, py::arg("binding"), nogil);
  m.def("binding_destroy", &binding_destroy, py::arg("binding"), nogil);
}

}  // namespace datadist
