// The module _C: what each file of this directory defines, and what belongs to the process.
#include "python/module.h"

#include "link/engine.h"
#include "link/forked.h"

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  using namespace datadist;  // NOLINT
  const auto nogil = py::call_guard<py::gil_scoped_release>();
  m.attr("BUILT_FOR_TORCH_NPU") = BUILT_FOR_TORCH_NPU;
  define_errors(m);
  define_instance(m);
  define_plan(m);
  define_waiters(m);
  define_tasks(m);
  define_bindings(m);
  define_packed(m);
  define_flow(m);
  define_memory(m);
  m.def(
      "require_not_forked", [](const std::string& asked) { require_not_forked(asked.c_str()); },
      py::arg("asked"));
  m.def("is_forked_child", &is_forked_child);
  m.def("stop_all", &Engine::stop_all, nogil);
}
