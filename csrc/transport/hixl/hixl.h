// CANN's HIXL engine: device and host memory of Ascend machines, from host to host, over RoCE, HCCS or fabric
// memory as it chooses. One hixl::Hixl per end of a link, with a port of its own: its end is the end of all
// that the peer can do to this process's memory, which a shared one would not give.
//
// What decides how it is used: no call takes a stream; a transfer is posted and polled, and nothing says that
// a peer froze; memory is to be registered before a connect, so memory that came later means that the link is
// connected anew, when nothing of it is under way.
#pragma once

#include <memory>
#include <string>

#include "transport/engine/engines.h"

namespace datadist::hixl {

// "" where it can be made; else what is missing.
std::string why_not();

// Throws with HIXL's code where it refuses.
std::unique_ptr<engine::Engine> make(const engine::Make& about);

}  // namespace datadist::hixl
