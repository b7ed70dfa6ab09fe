// Keeps back what torch_npu says of every machine without CANN; see emulator/quiet.py for the rest of it.
#pragma once

namespace emu_aten {

void quiet_until_first_task();
void first_task_is_queued();

}  // namespace emu_aten
