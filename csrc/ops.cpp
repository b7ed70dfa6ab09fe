// The torch ops: schemas, and bodies that check, call down and queue local gates on the caller's stream. The
// bytes move on streams of the link.
#include <ATen/core/Tensor.h>
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>
#include <torch_npu/csrc/core/npu/NPUGraphsUtils.h>
#include <torch_npu/csrc/core/npu/NPUStream.h>
#include <torch_npu/csrc/framework/OpCommand.h>

#include "acl/queue.h"
#include "link/binding.h"
#include "link/instance.h"
#include "python_error.h"

namespace datadist {
namespace {

using Gates = Binding::Gates;

// The current stream of a device, with that device current: the caller's may be another one.
struct StreamInUse {
  c10::DeviceGuard guard;
  aclrtStream raw;
  explicit StreamInUse(int device)
      : guard(c10::Device(c10::DeviceType::PrivateUse1, static_cast<c10::DeviceIndex>(device))),
        raw(c10_npu::getCurrentNPUStream(static_cast<c10::DeviceIndex>(device)).stream(false)) {}
};

void require_no_capture(const StreamInUse& stream, const char* asked) {
  require(!c10_npu::isStreamCapturingMayInitCtx(stream.raw), kFeatureNotEnabled, asked,
          ": the current stream captures a graph, and what this call reads now (block ids, gates) would be "
          "frozen in it. Call it "
          "outside the capture; in graphs a binding connects transfers with binding.bind before each replay, "
          "which is not there "
          "yet.");
}

void require_status(const at::Tensor& status, int device, const char* asked) {
  require(status.scalar_type() == at::kInt && status.numel() == 1, kParamInvalid, asked, ": status is ",
          status.scalar_type(), " with ", status.numel(), " elements; int32[1] was expected");
  require(status.device().is_privateuseone() && status.device().index() == device, kParamInvalid, asked,
          ": status is on ", status.device().str(), "; the caches are on npu:", device);
}

// A handler never fails: torch_npu would drop every later op in silence. A wait that the runtime refuses puts
// LLM_FAILED in the status instead of the truth that was not waited for, and a refused gate fails its
// transfer.
//
// It holds no tensor either: the last owner of one may need the GIL to let it go, and torch_npu drains its
// queue with the GIL held. The status stays valid without that, since the allocator re-uses memory in stream
// order.
void queue(const char* name, const StreamInUse& stream, Gates gates, const at::Tensor* status = nullptr) {
  void* const status_address = status == nullptr ? nullptr : status->data_ptr();
  at_npu::native::OpCommand::RunOpApiV2(
      name, [stream = stream.raw, gates = std::move(gates), status_address]() -> int {
        bool all_waited = true;
        for (char* word : gates.waits) {
          all_waited &= acl::queue_wait(word, gates.wait_value, stream) == 0;
        }
        if (status_address != nullptr) {
          const char* truth = all_waited ? gates.status : gates.failed;
          acl::queue_copy(status_address, truth, sizeof(int32_t), stream);
        }
        for (const Gate& gate : gates.writes) {
          if (acl::queue_write(gate.word, 1, stream) != 0) gate.refused->store(true);
        }
        if (gates.op_word != nullptr) acl::queue_write(gates.op_word, gates.op_number, stream);
        return 0;
      });
}

std::vector<char*> addresses(at::TensorList cache) {
  std::vector<char*> found;
  for (const at::Tensor& tensor : cache) found.push_back(static_cast<char*>(tensor.data_ptr()));
  return found;
}

struct BlockIds {
  at::Tensor held;
  const int64_t* ids;
  size_t length;
  BlockIds(const at::Tensor& tensor, const char* name, const char* asked) : held(tensor.contiguous()) {
    require(tensor.device().is_cpu() && tensor.scalar_type() == at::kLong && tensor.dim() == 1, kParamInvalid,
            asked, ": ", name, " is ", tensor.scalar_type(), " of ", tensor.dim(), " dimensions on ",
            tensor.device().str(), "; a one-dimensional int64 CPU tensor was expected");
    ids = held.const_data_ptr<int64_t>();
    length = static_cast<size_t>(held.numel());
  }
};

void move_blocks(Direction direction, const char* asked, const at::Tensor& status, at::TensorList cache,
                 const at::Tensor& src_blocks, const at::Tensor& dst_blocks, int64_t link_handle,
                 int64_t model_id, int64_t src_layer, int64_t dst_layer, int64_t num_layers,
                 int64_t tensors_per_layer, int64_t timeout_ms, bool hold_stream, int64_t waiter) {
  const auto link = require_link(link_handle, asked);
  const int device = link->engine().device();
  require_status(status, device, asked);
  const StreamInUse stream(device);
  require_no_capture(stream, asked);
  const BlockIds src(src_blocks, "src_blocks", asked);
  const BlockIds dst(dst_blocks, "dst_blocks", asked);
  TransferPlan plan = plan_transfer(*link, {direction, asked, addresses(cache), src.ids, src.length, dst.ids,
                                            dst.length, static_cast<uint64_t>(model_id), src_layer, dst_layer,
                                            num_layers, tensors_per_layer, timeout_ms});
  auto transfer = std::make_shared<Transfer>(link, std::move(plan), std::nullopt);
  link->engine().watch(transfer);
  if (waiter != 0) attach_waiter(waiter, transfer);
  try {
    transfer->submit(waiter != 0, asked);
  } catch (...) {
    transfer->cancel("it was refused before it began");
    throw;
  }
  Gates start;
  start.writes.push_back(transfer->start_gate_for(0));
  queue(asked, stream, std::move(start));
  if (!hold_stream) return;
  Gates hold;
  hold.waits.push_back(transfer->done_gate());
  hold.status = transfer->status()->address();
  hold.failed = link->engine().failed_status();
  hold.writes.push_back(transfer->passed_word_for_hold());
  queue(asked, stream, std::move(hold), &status);
}

void push_blocks(const at::Tensor& status, at::TensorList cache, const at::Tensor& src_blocks,
                 const at::Tensor& dst_blocks, int64_t link, int64_t model_id, int64_t src_layer,
                 int64_t dst_layer, int64_t num_layers, int64_t tensors_per_layer, int64_t timeout_ms,
                 bool hold_stream, int64_t transfer) {
  as_python_error([&] {
    move_blocks(Direction::kPush, "push_blocks", status, cache, src_blocks, dst_blocks, link, model_id,
                src_layer, dst_layer, num_layers, tensors_per_layer, timeout_ms, hold_stream, transfer);
  });
}

void pull_blocks(const at::Tensor& status, at::TensorList cache, const at::Tensor& src_blocks,
                 const at::Tensor& dst_blocks, int64_t link, int64_t model_id, int64_t src_layer,
                 int64_t dst_layer, int64_t num_layers, int64_t tensors_per_layer, int64_t timeout_ms,
                 bool hold_stream, int64_t transfer) {
  as_python_error([&] {
    move_blocks(Direction::kPull, "pull_blocks", status, cache, src_blocks, dst_blocks, link, model_id,
                src_layer, dst_layer, num_layers, tensors_per_layer, timeout_ms, hold_stream, transfer);
  });
}

template <typename Ask>
void layer_op(const char* asked, const at::Tensor& status, const at::Tensor& ordering, int64_t binding_number,
              Ask ask) {
  as_python_error([&] {
    const auto binding = bindings().get(binding_number, asked);
    require_status(status, binding->device(), asked);
    require(ordering.device() == status.device(), kParamInvalid, asked, ": the ordering tensor is on ",
            ordering.device().str(), ", the caches are on ", status.device().str(),
            "; it orders nothing there");
    const StreamInUse stream(binding->device());
    require_no_capture(stream, asked);
    queue(asked, stream, ask(*binding, stream.raw), &status);
  });
}

void push_layer(const at::Tensor& status, const at::Tensor& after, int64_t layer, int64_t binding) {
  layer_op("push_layer", status, after, binding,
           [&](Binding& bound, aclrtStream stream) { return bound.push_layer(layer, stream); });
}

void wait_layer(const at::Tensor& status, const at::Tensor& before, int64_t layer, int64_t binding) {
  layer_op("wait_layer", status, before, binding,
           [&](Binding& bound, aclrtStream stream) { return bound.wait_layer(layer, stream); });
}

void finish(const at::Tensor& status, const at::Tensor& before, int64_t binding) {
  layer_op("finish", status, before, binding,
           [&](Binding& bound, aclrtStream stream) { return bound.finish(stream); });
}

void refuse_host_tensors(const c10::OperatorHandle& op, torch::jit::Stack*) {
  as_python_error([&] {
    throw Error(kFeatureNotEnabled,
                join(op.schema().name(),
                     ": all tensors are on the CPU; caches in host memory are not there yet, an NPU "
                     "cache and its status were expected"));
  });
}

}  // namespace

TORCH_LIBRARY(torch_llm_datadist, m) {
  // clang-format off
  m.def("push_blocks("
        "Tensor(a!) status, "        // int32[1]: 0, or the LLMStatusCode of what went wrong
        "Tensor(b!)[] cache, "       // the local cache's tensors, as registered; marked although only sent: see design
        "Tensor src_blocks, "        // int64 on the CPU, local block ids, -1 is padding
        "Tensor dst_blocks, "        // int64 on the CPU, the peer's block ids, -1 where src_blocks has it
        "int link, "                 // LLMDataDist.link_id(cluster_id)
        "int model_id, "             // of the peer's cache
        "int src_layer, "            // first layer here
        "int dst_layer, "            // first layer there
        "int num_layers, "           // -1: all that follow
        "int tensors_per_layer, "
        "int timeout_ms, "           // from when the caller's stream got here; 0: the link's default
        "bool hold_stream, "         // the caller's stream goes on when the bytes have left
        "int transfer) -> ()");      // a host waits for it by this handle; 0: nobody does
  m.def("pull_blocks("
        "Tensor(a!) status, "
        "Tensor(b!)[] cache, "       // the local cache's tensors, written
        "Tensor src_blocks, "        // the peer's block ids
        "Tensor dst_blocks, "        // local block ids
        "int link, int model_id, int src_layer, int dst_layer, int num_layers, int tensors_per_layer, int timeout_ms, "
        "bool hold_stream, int transfer) -> ()");
  m.def("push_layer("
        "Tensor(a!) status, "        // int32[1], one per binding
        "Tensor after, "             // produced by the layer's last kernel: what the push must not overtake
        "int layer, "
        "int binding) -> ()");
  m.def("wait_layer("
        "Tensor(a!) status, "
        "Tensor(b!) before, "        // what the next kernel reads; marked as written, so that it is not moved ahead
        "int layer, "
        "int binding) -> ()");
  m.def("finish("
        "Tensor(a!) status, "
        "Tensor(b!) before, "        // the source blocks belong to the task until here
        "int binding) -> ()");
  // clang-format on
}

TORCH_LIBRARY_IMPL(torch_llm_datadist, PrivateUse1, m) {
  m.impl("push_blocks", &push_blocks);
  m.impl("pull_blocks", &pull_blocks);
  m.impl("push_layer", &push_layer);
  m.impl("wait_layer", &wait_layer);
  m.impl("finish", &finish);
}

TORCH_LIBRARY_IMPL(torch_llm_datadist, CPU, m) {
  for (const char* name : {"push_blocks", "pull_blocks", "push_layer", "wait_layer", "finish"}) {
    m.impl(name, torch::CppFunction::makeFromBoxedFunction<&refuse_host_tensors>());
  }
}

}  // namespace datadist
