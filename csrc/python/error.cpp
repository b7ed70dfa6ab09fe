// Errors of the core become the Python class that belongs to their code.
#include <torch/csrc/Exceptions.h>

#include "python/module.h"
#include "python_error.h"

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

}  // namespace

void throw_python_error(const Error& error) { throw PythonError(error.code(), error.what()); }

void define_errors(py::module_&) {
  py::register_exception_translator([](std::exception_ptr pointer) {
    try {
      if (pointer) std::rethrow_exception(pointer);
    } catch (const Error& error) {
      PythonError translated(error.code(), error.what());
      PyErr_SetString(translated.python_type(), translated.what());
    }
  });
}

}  // namespace datadist
