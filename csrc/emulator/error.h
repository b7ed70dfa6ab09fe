#pragma once

#include <string>

#include "emulator/acl_headers.h"

namespace emu {

// A refused call: the documented code and what was wrong. enter() turns it into the return value and the
// calling thread's recent message.
struct Error {
  aclError code;
  std::string message;
};

[[noreturn]] __attribute__((format(printf, 2, 3))) void fail(aclError code, const char* format, ...);

__attribute__((format(printf, 1, 2))) std::string text(const char* format, ...);

// What `code` means, in the words of the error table; "unknown error" for what is not in it.
const char* meaning(aclError code);

template <class T>
T* not_null(T* pointer, const char* name) {
  if (pointer == nullptr) fail(ACL_ERROR_RT_PARAM_INVALID, "%s is a null pointer", name);
  return pointer;
}

}  // namespace emu
