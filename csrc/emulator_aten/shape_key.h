#pragma once

#include <string>

#include "emulator_aten/shapes.h"

namespace emu_aten {

// Writes into `key` everything about the arguments that shapes may depend on. False: an argument of a kind
// that cannot be compared, so the result must not be remembered.
bool shape_key(Arguments arguments, std::string& key);

}  // namespace emu_aten
