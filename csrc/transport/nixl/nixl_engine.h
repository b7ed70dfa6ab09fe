// NIXL as an engine: host memory over whatever UCX finds between the two ends — shared memory on one host,
// RDMA or TCP between hosts. One agent per link, without threads of its own.
//
// What NIXL does not do is done here: messages carry a number and are put in order, and a peer that is gone
// is an error of `send`. What it never does, telling that a peer froze, is the link's part.
#pragma once

#include <memory>

#include "transport/engine/engines.h"

namespace datadist::nixl {

std::unique_ptr<engine::Engine> make_engine(const engine::Make& about);

}  // namespace datadist::nixl
