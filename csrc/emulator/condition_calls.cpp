#include "emulator/condition.h"
#include "emulator/context.h"
#include "emulator/entry.h"
#include "emulator/graph.h"
#include "emulator/runtime.h"
#include "emulator/stream.h"

namespace emu {
namespace {

void check_size(aclmdlRICondTaskType type, uint32_t size) {
  switch (type) {
    case ACL_MODEL_RI_COND_TYPE_IF:
      if (size == 1 || size == 2) return;
      fail(ACL_ERROR_RT_PARAM_INVALID, "an if has 1 or 2 branches, not %u", size);
    case ACL_MODEL_RI_COND_TYPE_WHILE:
      if (size == 1) return;
      fail(ACL_ERROR_RT_PARAM_INVALID, "a while has 1 branch, not %u", size);
    case ACL_MODEL_RI_COND_TYPE_SWITCH:
      if (size != 0) return;
      fail(ACL_ERROR_RT_PARAM_INVALID, "a switch without branches");
  }
  fail(ACL_ERROR_RT_PARAM_INVALID, "conditional task type %d is not 0, 1 or 2", type);
}

}  // namespace
}  // namespace emu

using namespace emu;

aclError aclmdlRICondHandleCreate(aclmdlRI modelRI, uint32_t defaultLaunchValue, aclmdlRICondHandleFlag flag,
                                  aclmdlRICondHandle* handle) {
  return ENTER(aclmdlRICondHandleCreate, {
    not_null(handle, "handle");
    if ((flag & ~ACL_MODEL_RI_COND_HANDLE_ASSIGN_DEFAULT) != 0)
      fail(ACL_ERROR_RT_PARAM_INVALID, "flag %d is neither 0 nor 1", flag);
    auto condition = Runtime::get().graphs.get(modelRI)->add_condition(
        defaultLaunchValue, flag == ACL_MODEL_RI_COND_HANDLE_ASSIGN_DEFAULT);
    condition->handle = Runtime::get().conditions.add(condition);
    *handle = condition->handle;
    return ACL_SUCCESS;
  });
}

aclError aclmdlRICondHandleGetCondPtr(aclmdlRICondHandle handle, uint64_t** ptr) {
  return ENTER(aclmdlRICondHandleGetCondPtr, {
    *not_null(ptr, "ptr") = reinterpret_cast<uint64_t*>(Runtime::get().conditions.get(handle)->address());
    return ACL_SUCCESS;
  });
}

aclError aclmdlRIAddCondTask(aclmdlRICondTaskParams params, aclrtStream stream, uint32_t flags) {
  return ENTER(aclmdlRIAddCondTask, {
    if (flags != 0) fail(ACL_ERROR_RT_PARAM_INVALID, "flags %u are reserved and must be 0", flags);
    not_null(params.modelRIArray, "modelRIArray");
    check_size(params.type, params.size);
    const auto condition = Runtime::get().conditions.get(params.handle);
    auto on = Thread::self().context->stream(stream);
    const auto graph = on->capture();
    if (graph == nullptr) fail(ACL_ERROR_RT_STREAM_NOT_CAPTURED, "stream %d is not being captured", on->id);
    if (condition->graph.lock() != graph)
      fail(ACL_ERROR_RT_PARAM_INVALID, "the condition is of another graph than the stream's");
    const auto branches = graph->add_conditional(*on, condition, params.type, params.size);
    std::copy(branches.begin(), branches.end(), params.modelRIArray);
    return ACL_SUCCESS;
  });
}
