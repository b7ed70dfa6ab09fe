// What an op leaves to the thread that runs torch_npu's queue.
#pragma once

#include <torch_npu/csrc/framework/OpCommand.h>

#include <utility>

#include "link/kept.h"

namespace datadist {

// `work.run()` queues the op's tasks on a stream, in the order of the ops. It never fails: torch_npu would
// drop every later op in silence.
//
// It holds no tensor either: the last owner of one may need the GIL to let it go, and torch_npu drains its
// queue with the GIL held. The status stays valid without that, since the allocator re-uses memory in stream
// order.
//
// torch_npu copies the function that it is given to queue: of a pointer that takes nothing from the heap.
template <typename Work>
void queue(const char* name, Work work) {
  auto* const kept = Kept<Work>::make(std::move(work));
  at_npu::native::OpCommand::RunOpApiV2(name, [kept]() -> int {
    kept->run();
    Kept<Work>::destroy(kept);
    return 0;
  });
}

}  // namespace datadist
