// Where the core meets Python: errors become the class that belongs to their code, and host waiters find
// transfers.
#pragma once

#include <cstdint>
#include <memory>

#include "error.h"

namespace datadist {

class Transfer;

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

// Lets `transfer_wait(handle)` wait for this transfer.
void attach_waiter(int64_t handle, std::shared_ptr<Transfer> transfer);

}  // namespace datadist
