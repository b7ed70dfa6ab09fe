// Host waiters find the transfers of the ops that they called.
#pragma once

#include <cstdint>
#include <memory>

namespace datadist {

class Transfer;

// Lets `transfer_wait(handle)` wait for this transfer.
void attach_waiter(int64_t handle, std::shared_ptr<Transfer> transfer);

}  // namespace datadist
