// How many bytes a push or a pull moves.
#pragma once

#include <cstdint>

namespace datadist {

struct TransferPlan;

int64_t bytes_of(const TransferPlan& plan, int64_t first_layer, int64_t layers);
// Of all layers; 0 where an end's cache is not known.
uint64_t bytes_of(const TransferPlan& plan);

}  // namespace datadist
