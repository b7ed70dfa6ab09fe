#pragma once

namespace emu {

// TORCH_LLM_DATADIST_EMULATE_LEAKS=1: says on stderr what the program did not give back, when its runtime
// ends. Says nothing when there is nothing but what torch_npu keeps for itself (its allocator's segments, its
// streams), which is named apart.
void report_leaks();

}  // namespace emu
