#pragma once

namespace emu {

// torch_npu has a thread that frees what its queue is done with, and that looks for more every microsecond,
// or as often as the kernel lets it: every 60, a tenth of a core in each process, which an emulated device
// needs for its own work. Lets it sleep for a millisecond at a time, where the process may say so
// (CAP_SYS_NICE).
void slow_down_pollers();

}  // namespace emu
