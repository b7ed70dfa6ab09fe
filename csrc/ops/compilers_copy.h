// A compiler that does not write in place hands an op a copy of the cache, and writes all of it back at the
// end. Of a cache that nothing else writes into (`receives=False`) such a copy may be sent from.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>

#include "link/instance.h"

namespace datadist {

// nullptr: it is none of such a cache. `is_blocks`: dimension 0 counts blocks, not batch entries. The copy is
// held until its transfer is over; `is_awaited`: the caller's stream, or thread, goes on only then, so that
// the graph does not use its memory for something else.
std::shared_ptr<LocalCache> compilers_copy(const std::shared_ptr<Link>& link, at::TensorList tensors,
                                           bool is_blocks, bool is_awaited, const char* asked);

}  // namespace datadist
