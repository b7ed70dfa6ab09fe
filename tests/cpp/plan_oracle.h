// One random plan per seed, against the plainest of references: every pair on its own, byte by byte.
#pragma once

#include <cstdint>

namespace datadist::plan_oracle {

// Throws check::Failure when the planner does anything but what the reference does, or touches a byte outside
// of the tensors.
void try_case(uint64_t seed);

}  // namespace datadist::plan_oracle

#include "plan/copies.h"
#include "plan/plan.h"
