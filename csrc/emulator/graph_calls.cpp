#include <cstdio>
#include <cstring>

#include "emulator/capture.h"
#include "emulator/context.h"
#include "emulator/entry.h"
#include "emulator/graph.h"
#include "emulator/runtime.h"
#include "emulator/stream.h"

namespace emu {
namespace {

Context& current() { return *Thread::self().context; }

void check_mode(int mode) {
  if (mode >= ACL_MODEL_RI_CAPTURE_MODE_GLOBAL && mode <= ACL_MODEL_RI_CAPTURE_MODE_RELAXED) return;
  fail(ACL_ERROR_RT_PARAM_INVALID, "capture mode %d is not 0, 1 or 2", mode);
}

std::shared_ptr<Graph> executable_graph(aclmdlRI handle) {
  auto graph = Runtime::get().graphs.get(handle);
  if (graph->is_captured_now())
    fail(ACL_ERROR_RT_MODEL_CAPTURED, "graph %u is still being captured", graph->id);
  if (graph->is_branch()) {
    fail(ACL_ERROR_RT_PARAM_INVALID, "graph %u is a branch of a conditional task and runs with its graph",
         graph->id);
  }
  if (&graph->origin()->context() != &current()) {
    fail(ACL_ERROR_RT_MODEL_CONTEXT, "graph %u was captured in another context than the current one",
         graph->id);
  }
  return graph;
}

std::shared_ptr<Stream> stream_to_capture(aclrtStream handle) {
  auto stream = current().stream(handle);
  if (stream->is_default())
    fail(ACL_ERROR_RT_STREAM_CAPTURE_IMPLICIT, "the default stream cannot be captured");
  if (stream->is_capturing())
    fail(ACL_ERROR_RT_STREAM_CAPTURED, "stream %d is being captured already", stream->id);
  if (stream->update() != nullptr)
    fail(ACL_ERROR_STREAM_TASK_GROUP_STATUS, "stream %d updates a task group; end that first", stream->id);
  return stream;
}

void print(const Graph& graph, const char* path) {
  std::FILE* file = std::fopen(path, "w");
  if (file == nullptr) fail(ACL_ERROR_RT_FILE_OPEN, "'%s' cannot be written", path);
  const std::string text = graph.describe_json();
  std::fwrite(text.data(), 1, text.size(), file);
  std::fclose(file);
}

}  // namespace
}  // namespace emu

using namespace emu;

aclError aclmdlRICaptureBegin(aclrtStream stream, aclmdlRICaptureMode mode) {
  return ENTER(aclmdlRICaptureBegin, {
    check_mode(mode);
    auto on = stream_to_capture(stream);
    auto graph = std::make_shared<Graph>();
    graph->begin(on, mode);
    graph->handle = Runtime::get().graphs.add(graph);
    return ACL_SUCCESS;
  });
}

aclError aclmdlRICaptureToModelRIBegin(aclrtStream stream, aclmdlRI modelRI, aclmdlRICaptureMode mode) {
  return ENTER(aclmdlRICaptureToModelRIBegin, {
    check_mode(mode);
    const auto graph = Runtime::get().graphs.get(modelRI);
    if (graph->is_captured_now())
      fail(ACL_ERROR_RT_MODEL_CAPTURED, "graph %u is being captured already", graph->id);
    if (!graph->is_branch() || graph->state() != Graph::kEmpty) {
      fail(ACL_ERROR_RT_PARAM_INVALID, "graph %u is not an empty branch of a conditional task", graph->id);
    }
    graph->begin(stream_to_capture(stream), mode);
    return ACL_SUCCESS;
  });
}

aclError aclmdlRICaptureGetInfo(aclrtStream stream, aclmdlRICaptureStatus* status, aclmdlRI* modelRI) {
  return ENTER(aclmdlRICaptureGetInfo, {
    not_null(status, "status");
    const auto graph = current().stream(stream)->capture();
    *status = graph == nullptr                      ? ACL_MODEL_RI_CAPTURE_STATUS_NONE
              : graph->state() == Graph::kCapturing ? ACL_MODEL_RI_CAPTURE_STATUS_ACTIVE
                                                    : ACL_MODEL_RI_CAPTURE_STATUS_INVALIDATED;
    if (modelRI != nullptr) *modelRI = graph == nullptr ? nullptr : graph->handle;
    return ACL_SUCCESS;
  });
}

aclError aclmdlRICaptureEnd(aclrtStream stream, aclmdlRI* modelRI) {
  return ENTER(aclmdlRICaptureEnd, {
    not_null(modelRI, "modelRI");
    *modelRI = nullptr;
    auto on = current().stream(stream);
    const auto graph = on->capture();
    if (graph == nullptr) fail(ACL_ERROR_RT_STREAM_NOT_CAPTURED, "stream %d is not being captured", on->id);
    if (graph->origin() != on) {
      fail(ACL_ERROR_RT_STREAM_CAPTURE_UNMATCHED, "the capture began on stream %d, not on stream %d",
           graph->origin()->id, on->id);
    }
    if (graph->mode() != ACL_MODEL_RI_CAPTURE_MODE_RELAXED && graph->thread() != Thread::self().id) {
      fail(ACL_ERROR_RT_STREAM_CAPTURE_WRONG_THREAD, "another thread began the capture");
    }
    graph->check_branches_ended();
    try {
      graph->finish();
    } catch (const Error&) {
      if (!graph->is_branch()) Runtime::get().graphs.remove(graph->handle);
      throw;
    }
    *modelRI = graph->handle;
    return ACL_SUCCESS;
  });
}

aclError aclmdlRICaptureThreadExchangeMode(aclmdlRICaptureMode* mode) {
  return ENTER(aclmdlRICaptureThreadExchangeMode, {
    const aclmdlRICaptureMode given = *not_null(mode, "mode");
    check_mode(given);
    *mode = static_cast<aclmdlRICaptureMode>(Thread::self().capture_mode);
    Thread::self().capture_mode = given;
    return ACL_SUCCESS;
  });
}

aclError aclmdlRIExecuteAsync(aclmdlRI modelRI, aclrtStream stream) {
  return ENTER(aclmdlRIExecuteAsync, {
    auto on = current().stream(stream);
    if (on->is_capturing()) fail(ACL_ERROR_RT_STREAM_CAPTURED, "stream %d is being captured", on->id);
    executable_graph(modelRI)->replay(*on);
    return ACL_SUCCESS;
  });
}

aclError aclmdlRIExecute(aclmdlRI modelRI, int32_t timeout) {
  return ENTER(aclmdlRIExecute, {
    if (timeout < -1) fail(ACL_ERROR_RT_PARAM_INVALID, "timeout %d ms; -1 waits for ever", timeout);
    const auto graph = executable_graph(modelRI);
    // On the graph's own first stream, so that its thread is there again the next time.
    const auto on = graph->streams().front();
    graph->replay(*on);
    on->synchronize(deadline_in_ms(timeout));
    return ACL_SUCCESS;
  });
}

aclError aclmdlRIAbort(aclmdlRI modelRI) {
  return ENTER(aclmdlRIAbort, {
    Runtime::get().graphs.get(modelRI)->abort();
    return ACL_SUCCESS;
  });
}

aclError aclmdlRIDestroy(aclmdlRI modelRI) {
  return ENTER(aclmdlRIDestroy, {
    if (Thread::self().in_host_function)
      fail(ACL_ERROR_RT_FEATURE_NOT_SUPPORT, "called from inside a host function");
    Runtime::get().graphs.get(modelRI)->release();
    Runtime::get().graphs.remove(modelRI);
    return ACL_SUCCESS;
  });
}

aclError aclmdlRIGetId(aclmdlRI modelRI, uint32_t* modelRIId) {
  return ENTER(aclmdlRIGetId, {
    *not_null(modelRIId, "modelRIId") = Runtime::get().graphs.get(modelRI)->id;
    return ACL_SUCCESS;
  });
}

aclError aclmdlRISetName(aclmdlRI modelRI, const char* name) {
  return ENTER(aclmdlRISetName, {
    Runtime::get().graphs.get(modelRI)->set_name(not_null(name, "name"));
    return ACL_SUCCESS;
  });
}

aclError aclmdlRIGetName(aclmdlRI modelRI, uint32_t maxLen, char* name) {
  return ENTER(aclmdlRIGetName, {
    not_null(name, "name");
    const std::string is = Runtime::get().graphs.get(modelRI)->name();
    if (is.size() >= maxLen)
      fail(ACL_ERROR_RT_PARAM_INVALID, "the name has %zu characters; maxLen is %u", is.size(), maxLen);
    std::memcpy(name, is.c_str(), is.size() + 1);
    return ACL_SUCCESS;
  });
}

aclError aclmdlRIDestroyRegisterCallback(aclmdlRI modelRI, aclrtCallback func, void* userData) {
  return ENTER(aclmdlRIDestroyRegisterCallback, {
    not_null(reinterpret_cast<void*>(func), "func");
    Runtime::get().graphs.get(modelRI)->on_release(func, userData);
    return ACL_SUCCESS;
  });
}

aclError aclmdlRIDestroyUnregisterCallback(aclmdlRI modelRI, aclrtCallback func) {
  return ENTER(aclmdlRIDestroyUnregisterCallback, {
    not_null(reinterpret_cast<void*>(func), "func");
    if (!Runtime::get().graphs.get(modelRI)->cancel_on_release(func))
      fail(ACL_ERROR_RT_PARAM_INVALID, "the function was not registered for this graph");
    return ACL_SUCCESS;
  });
}

aclError aclmdlRIDebugPrint(aclmdlRI modelRI) {
  return ENTER(aclmdlRIDebugPrint, {
    std::fputs(Runtime::get().graphs.get(modelRI)->describe().c_str(), stdout);
    return ACL_SUCCESS;
  });
}

aclError aclmdlRIDebugJsonPrint(aclmdlRI modelRI, const char* path, uint32_t flags) {
  return ENTER(aclmdlRIDebugJsonPrint, {
    if (flags > ACL_MDLRI_DEBUG_JSON_PRINT_VERBOSE)
      fail(ACL_ERROR_RT_PARAM_INVALID, "flags %u are neither 0 nor 1", flags);
    print(*Runtime::get().graphs.get(modelRI), not_null(path, "path"));
    return ACL_SUCCESS;
  });
}
