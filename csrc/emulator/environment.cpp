#include "emulator/environment.h"

#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>

#include "emulator/error.h"

namespace emu {

const char* given(const char* variable) {
  const char* value = std::getenv(variable);
  return value == nullptr || *value == '\0' ? nullptr : value;
}

void give_up(const char* variable, const char* value, const char* expected) {
  std::fprintf(stderr, "emulated Ascend runtime: %s=%s is not known; expected %s\n", variable, value,
               expected);
  _exit(2);  // no exit handlers: they would call into the runtime that is being made
}

uint64_t number(const char* variable, uint64_t otherwise, uint64_t least, uint64_t most) {
  const char* value = given(variable);
  if (value == nullptr) return otherwise;
  char* end = nullptr;
  errno = 0;
  const unsigned long long read = std::strtoull(value, &end, 10);
  // strtoull takes a sign, and turns what it cannot hold into the most that it can.
  const bool is_number = *value >= '0' && *value <= '9' && *end == '\0' && errno == 0;
  if (is_number && read >= least && read <= most) return read;
  const std::string limits = most == UINT64_MAX ? text("a whole number from %lu on", least)
                                                : text("a whole number from %lu to %lu", least, most);
  give_up(variable, value, limits.c_str());
}

}  // namespace emu
