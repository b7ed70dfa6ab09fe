// A task that takes its time, in order with the ops around it: how tests make a producer slow.
#include <torch/library.h>

#include <cstdio>

#include "emulator_aten/runtime.h"
#include "torch_npu/csrc/core/npu/NPUStream.h"
#include "torch_npu/csrc/framework/OpCommand.h"

namespace {

void delay_stream(int64_t microseconds) {
  const aclrtStream stream = c10_npu::getCurrentNPUStream().stream(false);
  at_npu::native::OpCommand::RunOpApiV2("emulator_delay_stream", [stream, microseconds]() -> int {
    const aclError code = emu_aten::delay_stream(stream, static_cast<uint64_t>(microseconds));
    if (code != ACL_SUCCESS)
      std::fprintf(stderr, "torch_llm_datadist.emulator: delay_stream: error %d\n", code);
    return 0;
  });
}

}  // namespace

TORCH_LIBRARY(torch_llm_datadist_emulator, library) {
  library.def("delay_stream(int microseconds) -> ()", &delay_stream);
}
