#pragma once

#include <cstdint>

namespace emu {

// An environment variable's value; null when it is unset or empty.
const char* given(const char* variable);

// Ends the process with what was asked and what was expected: nothing that a test finds counts when it ran
// with other settings than it asked for.
[[noreturn]] void give_up(const char* variable, const char* value, const char* expected);

// A whole number within limits, or `otherwise` where none is given.
uint64_t number(const char* variable, uint64_t otherwise, uint64_t least = 0, uint64_t most = UINT64_MAX);

}  // namespace emu
