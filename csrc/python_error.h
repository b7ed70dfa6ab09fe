// Where the core meets Python: errors become the class that belongs to their code.
#pragma once

#include "error.h"

namespace datadist {

// Rethrows an Error as what torch turns into torch_llm_datadist.errors.class_for_code(code).
[[noreturn]] void throw_python_error(const Error& error);

template <typename Body>
void as_python_error(Body body) {
  try {
    body();
  } catch (const Error& error) {
    throw_python_error(error);
  }
}

}  // namespace datadist
