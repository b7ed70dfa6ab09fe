// Shapes of the ops whose meta kernel does not say what their CPU kernel does.
#pragma once

#include <string_view>

#include "emulator_aten/shapes.h"

namespace emu_aten {

// Null for an op whose meta kernel can be trusted.
ShapeRule shape_rule_of(std::string_view op);

}  // namespace emu_aten
