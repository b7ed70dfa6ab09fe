// What a transfer that is not packed queues on its link's stream.
#pragma once

#include <memory>

#include "link/lane.h"

namespace datadist {

class Transfer;

// `notify_host`: somebody will `wait`.
std::unique_ptr<Program> make_transfer_program(std::shared_ptr<Transfer> transfer, bool notify_host);

}  // namespace datadist
