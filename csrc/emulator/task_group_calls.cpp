#include "emulator/context.h"
#include "emulator/entry.h"
#include "emulator/graph.h"
#include "emulator/runtime.h"
#include "emulator/stream.h"
#include "emulator/task_group.h"

namespace emu {
namespace {

std::shared_ptr<Graph> capture_of(const Stream& stream) {
  auto graph = stream.capture();
  if (graph == nullptr) fail(ACL_ERROR_RT_STREAM_NOT_CAPTURED, "stream %d is not being captured", stream.id);
  if (graph->state() != Graph::kCapturing)
    fail(ACL_ERROR_RT_STREAM_CAPTURE_INVALIDATED, "the capture of stream %d is spoiled", stream.id);
  return graph;
}

std::shared_ptr<TaskGroup> finished_group(aclrtTaskGrp handle) {
  auto group = Runtime::get().task_groups.get(handle);
  const auto graph = group->graph.lock();
  if (graph == nullptr) fail(ACL_ERROR_RT_INVALID_HANDLE, "the task group's graph is destroyed");
  if (graph->is_captured_now()) {
    fail(ACL_ERROR_RT_MODEL_CAPTURED, "the task group's graph %u is still being captured", graph->id);
  }
  return group;
}

}  // namespace
}  // namespace emu

using namespace emu;

aclError aclmdlRICaptureTaskGrpBegin(aclrtStream stream) {
  return ENTER(aclmdlRICaptureTaskGrpBegin, {
    auto on = Thread::self().context->stream(stream);
    capture_of(*on)->begin_group(*on);
    return ACL_SUCCESS;
  });
}

aclError aclmdlRICaptureTaskGrpEnd(aclrtStream stream, aclrtTaskGrp* handle) {
  return ENTER(aclmdlRICaptureTaskGrpEnd, {
    not_null(handle, "handle");
    auto on = Thread::self().context->stream(stream);
    *handle = capture_of(*on)->end_group(*on);
    return ACL_SUCCESS;
  });
}

aclError aclmdlRICaptureTaskUpdateBegin(aclrtStream stream, aclrtTaskGrp handle) {
  return ENTER(aclmdlRICaptureTaskUpdateBegin, {
    auto on = Thread::self().context->stream(stream);
    on->refuse_while_capturing();
    if (on->update() != nullptr) {
      fail(ACL_ERROR_STREAM_TASK_GROUP_STATUS, "stream %d updates a task group already; end that first",
           on->id);
    }
    on->set_update(std::make_shared<GroupUpdate>(finished_group(handle)));
    return ACL_SUCCESS;
  });
}

aclError aclmdlRICaptureTaskUpdateEnd(aclrtStream stream) {
  return ENTER(aclmdlRICaptureTaskUpdateEnd, {
    auto on = Thread::self().context->stream(stream);
    const auto update = on->update();
    if (update == nullptr)
      fail(ACL_ERROR_STREAM_TASK_GROUP_STATUS, "no update of a task group was begun on stream %d", on->id);
    on->set_update(nullptr);
    on->submit(update->finish());
    return ACL_SUCCESS;
  });
}
