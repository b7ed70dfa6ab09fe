// A fork copies one thread. In the child of a process that had engines there is no watchdog, no feeder and no
// device, and a lock may be held for ever by a thread that is not there: nothing of this library works in it,
// and each call says so instead of waiting.
#pragma once

namespace datadist {

void threads_start_here();  // from now on a fork is noticed
bool is_forked_child();
void require_not_forked(const char* asked);

}  // namespace datadist
