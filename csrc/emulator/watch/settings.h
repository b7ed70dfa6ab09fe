#pragma once

#include <cstdlib>
#include <cstring>

namespace emu::watch {

// The value of an environment variable; null when it is unset, empty or 0.
inline const char* setting(const char* name) {
  const char* given = std::getenv(name);
  return given == nullptr || *given == '\0' || std::strcmp(given, "0") == 0 ? nullptr : given;
}

}  // namespace emu::watch
