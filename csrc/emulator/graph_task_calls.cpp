#include "emulator/context.h"
#include "emulator/entry.h"
#include "emulator/graph.h"
#include "emulator/graph_task.h"
#include "emulator/runtime.h"
#include "emulator/stream.h"

namespace emu {
namespace {

struct Found {
  std::shared_ptr<GraphTask> task;
  std::shared_ptr<Graph> graph;
};

Found found(aclmdlRITask handle) {
  auto task = Runtime::get().graph_tasks.get(handle);
  auto graph = task->graph.lock();
  if (graph == nullptr) fail(ACL_ERROR_RT_INVALID_HANDLE, "the task's graph is destroyed");
  return {std::move(task), std::move(graph)};
}

// ACL's way to return a list: the caller says how much room there is, and hears how many there are. Without
// room it only asks.
template <class Handle>
void give_list(const std::vector<Handle>& all, Handle* out, uint32_t* count, const char* what) {
  const uint32_t room = *not_null(count, "count");
  *count = static_cast<uint32_t>(all.size());
  if (out == nullptr) return;
  if (room < all.size())
    fail(ACL_ERROR_RT_PARAM_INVALID, "there are %zu %s, the array has room for %u", all.size(), what, room);
  std::copy(all.begin(), all.end(), out);
}

std::shared_ptr<Graph> captured_graph(aclmdlRI handle) {
  auto graph = Runtime::get().graphs.get(handle);
  if (graph->is_captured_now())
    fail(ACL_ERROR_RT_MODEL_CAPTURED, "graph %u is still being captured", graph->id);
  return graph;
}

}  // namespace
}  // namespace emu

using namespace emu;

aclError aclmdlRIGetStreams(aclmdlRI modelRI, aclrtStream* streams, uint32_t* numStreams) {
  return ENTER(aclmdlRIGetStreams, {
    std::vector<aclrtStream> handles;
    for (const auto& stream : captured_graph(modelRI)->streams()) handles.push_back(stream->handle);
    give_list(handles, streams, numStreams, "streams");
    return ACL_SUCCESS;
  });
}

aclError aclmdlRIGetTasksByStream(aclrtStream stream, aclmdlRITask* tasks, uint32_t* numTasks) {
  return ENTER(aclmdlRIGetTasksByStream, {
    const auto of = Runtime::get().streams.get(stream);
    const auto graph = of->owner();
    if (graph == nullptr)
      fail(ACL_ERROR_RT_PARAM_INVALID, "stream %d is not part of a graph (aclmdlRIGetStreams)", of->id);
    give_list(graph->tasks_of(*of), tasks, numTasks, "tasks");
    return ACL_SUCCESS;
  });
}

aclError aclmdlRITaskGetType(aclmdlRITask task, aclmdlRITaskType* type) {
  return ENTER(aclmdlRITaskGetType, {
    const Found asked = found(task);
    aclmdlRITaskParams parameters;
    asked.graph->read_parameters(*asked.task, parameters);
    *not_null(type, "type") = parameters.type;
    return ACL_SUCCESS;
  });
}

aclError aclmdlRITaskGetSeqId(aclmdlRITask task, uint32_t* id) {
  return ENTER(aclmdlRITaskGetSeqId, {
    const Found asked = found(task);
    *not_null(id, "id") = asked.graph->sequence_of(*asked.task);
    return ACL_SUCCESS;
  });
}

aclError aclmdlRITaskGetParams(aclmdlRITask task, aclmdlRITaskParams* params) {
  return ENTER(aclmdlRITaskGetParams, {
    const Found asked = found(task);
    asked.graph->read_parameters(*asked.task, *not_null(params, "params"));
    return ACL_SUCCESS;
  });
}

aclError aclmdlRITaskSetParams(aclmdlRITask task, aclmdlRITaskParams* params) {
  return ENTER(aclmdlRITaskSetParams, {
    const Found asked = found(task);
    asked.graph->edit(*asked.task, *not_null(params, "params"));
    return ACL_SUCCESS;
  });
}

aclError aclmdlRITaskDisable(aclmdlRITask task) {
  return ENTER(aclmdlRITaskDisable, {
    const Found asked = found(task);
    asked.graph->disable(*asked.task);
    return ACL_SUCCESS;
  });
}

aclError aclmdlRIUpdate(aclmdlRI modelRI) {
  return ENTER(aclmdlRIUpdate, {
    captured_graph(modelRI)->update();
    return ACL_SUCCESS;
  });
}
