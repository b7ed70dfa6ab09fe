// The native interface of _C.pyi, one noun per file. Thin: every function converts, releases the GIL and
// calls down.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

namespace py = pybind11;

namespace datadist {

void define_errors(py::module_& m);
void define_instance(py::module_& m);
void define_plan(py::module_& m);
void define_waiters(py::module_& m);
void define_tasks(py::module_& m);
void define_bindings(py::module_& m);
void define_packed(py::module_& m);
void define_flow(py::module_& m);
void define_memory(py::module_& m);

}  // namespace datadist
