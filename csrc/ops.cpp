// The torch ops: schemas, and bodies that check, call down and queue local gates on the caller's stream. The
// bytes move on streams of the link.
#include <ATen/core/Tensor.h>
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>
#include <torch_npu/csrc/core/npu/NPUGraphsUtils.h>
#include <torch_npu/csrc/core/npu/NPUStream.h>
#include <torch_npu/csrc/framework/OpCommand.h>

#include <set>

#include "acl/queue.h"
#include "cache/local_copy.h"
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

// What the four ops of whole transfers share; `request` says what moves.
void move(TransferRequest request, const at::Tensor& status, at::TensorList cache, int64_t link_handle,
          bool hold_stream, int64_t waiter) {
  const char* asked = request.asked;
  const auto link = require_link(link_handle, asked);
  const int device = link->engine().device();
  require_status(status, device, asked);
  const StreamInUse stream(device);
  require_no_capture(stream, asked);
  request.cache = addresses(cache);
  if (!cache.empty() && cache[0].dim() > 0) request.dimension_0 = cache[0].size(0);
  TransferPlan plan = plan_transfer(*link, request);
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

struct Layers {
  int64_t src_first;
  int64_t dst_first;
  int64_t count;
  int64_t tensors_each;
};

TransferRequest request_of(Direction direction, const char* asked, const Layers& layers, int64_t timeout_ms) {
  TransferRequest request;
  request.direction = direction;
  request.asked = asked;
  request.src_layer = layers.src_first;
  request.dst_layer = layers.dst_first;
  request.num_layers = layers.count;
  request.tensors_per_layer = layers.tensors_each;
  request.timeout_ms = timeout_ms;
  return request;
}

template <Direction direction>
void move_blocks(const at::Tensor& status, at::TensorList cache, const at::Tensor& src_blocks,
                 const at::Tensor& dst_blocks, int64_t link, int64_t model_id, int64_t src_layer,
                 int64_t dst_layer, int64_t num_layers, int64_t tensors_per_layer, int64_t timeout_ms,
                 bool hold_stream, int64_t transfer) {
  as_python_error([&] {
    const char* asked = direction == Direction::kPush ? "push_blocks" : "pull_blocks";
    auto request =
        request_of(direction, asked, {src_layer, dst_layer, num_layers, tensors_per_layer}, timeout_ms);
    const BlockIds src(src_blocks, "src_blocks", asked);
    const BlockIds dst(dst_blocks, "dst_blocks", asked);
    request.src_blocks = src.ids;
    request.src_length = src.length;
    request.dst_blocks = dst.ids;
    request.dst_length = dst.length;
    request.model_id = static_cast<uint64_t>(model_id);
    move(std::move(request), status, cache, link, hold_stream, transfer);
  });
}

template <Direction direction>
void move_entry(const at::Tensor& status, at::TensorList cache, const at::Tensor& dst_blocks, int64_t link,
                int64_t cache_id, int64_t src_batch, int64_t dst_batch, int64_t size, int64_t src_layer,
                int64_t dst_layer, int64_t num_layers, int64_t tensors_per_layer, int64_t timeout_ms,
                bool hold_stream, int64_t transfer) {
  as_python_error([&] {
    const char* asked = direction == Direction::kPush ? "push_cache" : "pull_cache";
    auto request =
        request_of(direction, asked, {src_layer, dst_layer, num_layers, tensors_per_layer}, timeout_ms);
    const BlockIds dst(dst_blocks, "dst_blocks", asked);
    request.layout = dst.length > 0 ? Layout::kEntryToBlocks : Layout::kEntry;
    request.dst_blocks = dst.ids;
    request.dst_length = dst.length;
    request.cache_id = cache_id;
    request.src_entry = src_batch;
    request.dst_entry = dst_batch;
    request.size_bytes = size;
    move(std::move(request), status, cache, link, hold_stream, transfer);
  });
}

// A handler never fails (see `queue`), so a refused copy puts LLM_FAILED in the status.
void queue_copies(const char* asked, const at::Tensor& status, std::vector<LocalCopy> copies) {
  const int device = status.device().index();
  require_status(status, device, asked);
  const StreamInUse stream(device);
  require_no_capture(stream, asked);
  if (copies.empty()) return;
  at_npu::native::OpCommand::RunOpApiV2(
      asked,
      [stream = stream.raw, copies = std::move(copies), status = status.data_ptr(),
       failed = Engine::of(device)->failed_status()]() -> int {
        if (queue_local_copies(copies, stream) != 0) acl::queue_copy(status, failed, sizeof(int32_t), stream);
        return 0;
      });
}

void require_local(const at::Tensor& status, at::TensorList tensors, const char* name, const char* asked) {
  for (const at::Tensor& tensor : tensors) {
    require(tensor.device().is_cpu() || tensor.device() == status.device(), kParamInvalid, asked,
            ": a tensor of ", name, " is on ", tensor.device().str(), "; ", status.device().str(),
            ", where the status is, or the CPU was expected");
  }
}

void require_as_many(at::TensorList dst, at::TensorList src, const char* asked) {
  require(dst.size() == src.size(), kParamInvalid, asked, ": the source has ", src.size(),
          " tensors and the destination ", dst.size(), "; expected as many. Nothing was copied.");
}

void add_blocks(LocalCopies& copies, const at::Tensor& dst, const at::Tensor& src, const BlockIds& src_ids,
                const BlockIds& dst_ids, const char* asked) {
  const int64_t stride = stride_of(src, "the source", asked);
  const int64_t dst_stride = stride_of(dst, "the destination", asked);
  require(stride == dst_stride, kParamInvalid, asked, ": a block has ", stride, " bytes in the source and ",
          dst_stride, " in the destination. Nothing was copied.");
  const auto runs = merge_runs(
      pair_blocks(src_ids.ids, src_ids.length, dst_ids.ids, dst_ids.length, src.size(0), dst.size(0), asked));
  for (const Run& run : runs) copies.add(dst, run.dst * stride, src, run.src * stride, run.blocks * stride);
}

void copy_cache(const at::Tensor& status, at::TensorList dst, at::TensorList src, int64_t dst_batch,
                int64_t src_batch, int64_t offset, int64_t size) {
  as_python_error([&] {
    const char* asked = "copy_cache";
    require_as_many(dst, src, asked);
    require_local(status, dst, "the destination", asked);
    require_local(status, src, "the source", asked);
    LocalCopies copies(asked);
    for (size_t t = 0; t < src.size(); ++t) {
      const int64_t src_stride = stride_of(src[t], "the source", asked);
      const int64_t dst_stride = stride_of(dst[t], "the destination", asked);
      require(src_batch >= 0 && src_batch < src[t].size(0), kParamInvalid, asked,
              ": src_batch_index = ", src_batch, ", the source has ", src[t].size(0),
              " batch entries. Nothing was copied.");
      require(dst_batch >= 0 && dst_batch < dst[t].size(0), kParamInvalid, asked,
              ": dst_batch_index = ", dst_batch, ", the destination has ", dst[t].size(0),
              " batch entries. Nothing was copied.");
      const int64_t bytes = size == -1 ? src_stride - offset : size;
      require(offset >= 0 && bytes > 0 && offset <= src_stride - bytes && offset <= dst_stride - bytes,
              kParamInvalid, asked, ": offset = ", offset, " and size = ", size, " of tensor ", t,
              ", whose batch entries have ", src_stride, " bytes in the source and ", dst_stride,
              " in the destination. Nothing was copied.");
      copies.add(dst[t], dst_batch * dst_stride + offset, src[t], src_batch * src_stride + offset, bytes);
    }
    queue_copies(asked, status, copies.take());
  });
}

void copy_blocks(const at::Tensor& status, at::TensorList cache, const at::Tensor& src_blocks,
                 const at::Tensor& dst_blocks) {
  as_python_error([&] {
    const char* asked = "copy_blocks";
    require_local(status, cache, "the cache", asked);
    const BlockIds src(src_blocks, "src_blocks", asked);
    const BlockIds dst(dst_blocks, "dst_blocks", asked);
    const std::set<int64_t> sources(src.ids, src.ids + src.length);
    for (size_t i = 0; i < std::min(src.length, dst.length); ++i) {
      require(dst.ids[i] < 0 || dst.ids[i] == src.ids[i] || sources.count(dst.ids[i]) == 0, kParamInvalid,
              asked, ": block ", dst.ids[i],
              " is a destination and a source, and which comes first is not defined. Nothing was copied.");
    }
    LocalCopies copies(asked);
    for (const at::Tensor& tensor : cache) add_blocks(copies, tensor, tensor, src, dst, asked);
    queue_copies(asked, status, copies.take());
  });
}

void swap_blocks(const at::Tensor& status, at::TensorList src_cache, at::TensorList dst_cache,
                 const at::Tensor& src_blocks, const at::Tensor& dst_blocks) {
  as_python_error([&] {
    const char* asked = "swap_blocks";
    require_as_many(dst_cache, src_cache, asked);
    require_local(status, dst_cache, "the destination", asked);
    require_local(status, src_cache, "the source", asked);
    const BlockIds src(src_blocks, "src_blocks", asked);
    const BlockIds dst(dst_blocks, "dst_blocks", asked);
    LocalCopies copies(asked);
    for (size_t t = 0; t < src_cache.size(); ++t)
      add_blocks(copies, dst_cache[t], src_cache[t], src, dst, asked);
    queue_copies(asked, status, copies.take());
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
    throw Error(
        kFeatureNotEnabled,
        join(op.schema().name(),
             ": all tensors are on the CPU; the status, and what orders a layer op, were expected on the "
             "instance's NPU, whose stream carries the op, also for caches in host memory"));
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
  m.def("push_cache("
        "Tensor(a!) status, "
        "Tensor(b!)[] cache, "       // the local cache's tensors, contiguous (batch entries)
        "Tensor dst_blocks, "        // int64 on the CPU: the entry goes to these blocks, slice by slice; empty: to an entry
        "int link, "
        "int cache_id, "             // of the peer's cache
        "int src_batch, "            // batch index here
        "int dst_batch, "            // batch index there
        "int size, "                 // bytes of each tensor, from the start of the entry; -1: the local entry
        "int src_layer, int dst_layer, int num_layers, int tensors_per_layer, int timeout_ms, "
        "bool hold_stream, int transfer) -> ()");
  m.def("pull_cache("
        "Tensor(a!) status, "
        "Tensor(b!)[] cache, "       // the local cache's tensors, written
        "Tensor dst_blocks, "        // local block ids; empty: into a batch entry
        "int link, "
        "int cache_id, "
        "int src_batch, "            // batch index there
        "int dst_batch, "            // batch index here
        "int size, int src_layer, int dst_layer, int num_layers, int tensors_per_layer, int timeout_ms, "
        "bool hold_stream, int transfer) -> ()");
  m.def("copy_cache("
        "Tensor(a!) status, "
        "Tensor(b!)[] dst, "
        "Tensor(c!)[] src, "
        "int dst_batch, int src_batch, "
        "int offset, "               // bytes into both entries
        "int size) -> ()");          // bytes; -1: what is left of the source's entry
  m.def("copy_blocks("
        "Tensor(a!) status, "
        "Tensor(b!)[] cache, "
        "Tensor src_blocks, "        // int64 on the CPU; a block may be listed often
        "Tensor dst_blocks) -> ()");
  m.def("swap_blocks("
        "Tensor(a!) status, "
        "Tensor(b!)[] src_cache, "   // one of the two on the CPU
        "Tensor(c!)[] dst_cache, "
        "Tensor src_blocks, "
        "Tensor dst_blocks) -> ()");
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
  m.impl("push_blocks", &move_blocks<Direction::kPush>);
  m.impl("pull_blocks", &move_blocks<Direction::kPull>);
  m.impl("push_cache", &move_entry<Direction::kPush>);
  m.impl("pull_cache", &move_entry<Direction::kPull>);
  m.impl("copy_cache", &copy_cache);
  m.impl("copy_blocks", &copy_blocks);
  m.impl("swap_blocks", &swap_blocks);
  m.impl("push_layer", &push_layer);
  m.impl("wait_layer", &wait_layer);
  m.impl("finish", &finish);
}

TORCH_LIBRARY_IMPL(torch_llm_datadist, CPU, m) {
  for (const char* name : {"push_blocks", "pull_blocks", "push_cache", "pull_cache", "copy_cache",
                           "copy_blocks", "swap_blocks", "push_layer", "wait_layer", "finish"}) {
    m.impl(name, torch::CppFunction::makeFromBoxedFunction<&refuse_host_tensors>());
  }
}

}  // namespace datadist
