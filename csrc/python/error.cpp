// Errors of the core become the Python class that belongs to their code.
#include <torch/csrc/Exceptions.h>

#include "messages/messages.h"
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

void define_errors(py::module_& m) {
  m.def("message_rows", [] {
    std::vector<std::tuple<std::string, std::string, std::string, std::string, std::string, std::string>>
        rows;
    for (const MessageRow& row : message_rows())
      rows.emplace_back(row.name, row.kind, row.what, row.expected, row.state, row.next);
    return rows;
  });
  m.def(
      "render_message",
      [](const std::string& name, const std::map<std::string, std::string>& values) {
        std::vector<Value> found;
        for (const auto& [key, value] : values) found.emplace_back(key.c_str(), value);
        for (const MessageRow& row : message_rows()) {
          if (row.name == name) return fill_in(row.text(), found);
        }
        throw Error(kParamInvalid, join("render_message: there is no row ", name));
      },
      py::arg("name"), py::arg("values"));
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
