// An engine between processes of one host and user, out of what every Linux has: requests are
// process_vm_writev and process_vm_readv, messages are datagrams of a socket without a file. It is there so
// that everything around an engine runs, and is tested, where no other engine is installed.
#pragma once

#include <memory>
#include <string>

#include "transport/engine/engines.h"

namespace datadist::engine {

std::string why_no_loopback();
std::unique_ptr<Engine> make_loopback(const Make& about);

}  // namespace datadist::engine
