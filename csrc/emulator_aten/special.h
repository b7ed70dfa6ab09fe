// The ops that follow no common rule.
#pragma once

#include <torch/library.h>

namespace emu_aten {

// Call before any override: the copy keeps using torch_npu's own kernel where bytes just move.
void install_copy(torch::Library& npu);
void install_attention(torch::Library& npu, torch::Library& autograd_npu);
void install_dropout(torch::Library& npu);

}  // namespace emu_aten
