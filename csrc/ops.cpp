// The torch ops: schemas, and bodies that check, call down and queue local gates on the caller's stream. The
// bytes move on streams of the link. With tensors on the CPU there is no stream to queue on: an op runs in
// its place on the calling thread, and blocks it where a stream would wait. (ops/ has the local copies.)
#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include <span>

#include "acl/queue.h"
#include "link/binding.h"
#include "link/destination.h"
#include "link/instance.h"
#include "link/kept.h"
#include "link/spans.h"
#include "link/ticket.h"
#include "messages/messages.h"
#include "ops/arguments.h"
#include "ops/compilers_copy.h"
#include "ops/queue.h"
#include "ops/span.h"
#include "python/waiters.h"
#include "python_error.h"

namespace datadist {
namespace {

// A whole transfer's share of the caller's stream, in this order. Empty fields are left out.
struct Gates {
  char* start = nullptr;                       // 1: what was queued before is done
  std::shared_ptr<Feeder> feeder;              // has what that starts
  char* done = nullptr;                        // wait for 1
  char* status = nullptr;                      // copied to the caller's
  char* failed = nullptr;                      // copied in its place when the wait was refused
  char* passed = nullptr;                      // 1: nothing above is read any more
  std::shared_ptr<std::atomic<bool>> refused;  // where a gate was: that fails the transfer
};

// A wait that the runtime refuses puts LLM_FAILED in the status instead of the truth that was not waited for,
// and a refused gate fails its transfer.
struct QueueGates {
  Gates gates;
  aclrtStream stream = nullptr;
  void* status = nullptr;

  void run() const {
    gates.feeder->wake();  // first: a full stream blocks the others until what it holds has run
    if (acl::queue_write(gates.start, 1, stream) != 0) gates.refused->store(true);
    if (gates.done == nullptr) return;
    const bool has_waited = acl::queue_wait(gates.done, 1, stream) == 0;
    acl::queue_copy(status, has_waited ? gates.status : gates.failed, sizeof(int32_t), stream);
    if (acl::queue_write(gates.passed, 1, stream) != 0) gates.refused->store(true);
  }
};

// The same for a layer op, eager or captured: what is queued is local memory at addresses that stay.
struct QueueSteps {
  OpSteps steps;
  aclrtStream stream = nullptr;
  void* status = nullptr;

  void run() const { steps.queue(status, stream); }
};

Gates starting(Transfer& transfer) {
  Gates gates;
  Gate start = transfer.start_gate_for(0);
  gates.start = start.word;
  gates.feeder = std::move(start.feeder);
  gates.refused = std::move(start.refused);
  return gates;
}

// Of this thread's last call only.
std::span<char* const> addresses(at::TensorList cache) {
  thread_local std::vector<char*> found;
  found.clear();
  for (const at::Tensor& tensor : cache) found.push_back(static_cast<char*>(tensor.data_ptr()));
  return found;
}

// Checked, planned and at its link, where it waits for its start. `is_waited_for`: by this thread.
std::shared_ptr<Transfer> begin(const std::shared_ptr<Link>& link, const TransferRequest& request,
                                int64_t waiter, bool is_waited_for) {
  TransferPlan plan = plan_transfer(*link, request);
  wait_until_settled(*link, plan, request.asked);
  const auto ticket = plan.ticket;
  const auto [remote_id, remote] = std::pair(plan.remote->id, plan.remote_layers);
  auto transfer = make_kept<Transfer>(link, std::move(plan), std::nullopt);
  link->engine().watch(transfer);
  if (waiter != 0) attach_waiter(waiter, transfer);
  bool is_claimed = false;
  try {
    if (ticket != nullptr) {
      ticket->claim(transfer->pull_round(), remote_id, remote.first_layer * remote.tensors_per_layer,
                    remote.layers * remote.tensors_per_layer, request.asked);
      is_claimed = true;
    }
    transfer->submit(waiter != 0 || is_waited_for, request.asked);
  } catch (...) {
    if (is_claimed) ticket->unclaim();
    transfer->cancel("it was refused before it began");
    throw;
  }
  return transfer;
}

// What the four ops of whole transfers share; `request` says what moves.
void move(TransferRequest request, const at::Tensor& status, at::TensorList cache, int64_t link_handle,
          bool hold_stream, int64_t waiter) {
  const char* asked = request.asked;
  const auto link = require_link(link_handle, asked);
  request.cache = addresses(cache);
  if (!cache.empty() && cache[0].dim() > 0) request.dimension_0 = cache[0].size(0);
  const auto make_copy = [&] {
    return compilers_copy(link, cache, request.layout == Layout::kBlocks, hold_stream, asked);
  };
  if (request.direction == Direction::kPush) request.make_copy = std::cref(make_copy);
  if (is_on_host(status, cache)) {
    require_int32(status, asked);
    const auto transfer = begin(link, request, waiter, hold_stream);
    const OpSpan span([&] { return join(asked, " ", transfer->span(0)); }, transfer->has_spans());
    transfer->start_from_host(0);
    if (hold_stream) write_status(status, transfer->wait().first);
    return;
  }
  const int device = link->engine().device();
  require_status(status, device, asked);
  const StreamInUse stream(device);
  require_no_capture(stream, asked);
  const auto transfer = begin(link, request, waiter, false);
  const OpSpan span([&] { return join(asked, " ", transfer->span(0)); }, transfer->has_spans());
  Gates gates = starting(*transfer);
  if (hold_stream) {
    gates.done = transfer->done_gate();
    gates.status = transfer->status()->address();
    gates.failed = link->engine().failed_status();
    gates.passed = transfer->passed_word_for_hold().word;
  }
  queue(asked, QueueGates{std::move(gates), stream.raw, status.data_ptr()});
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
                 bool hold_stream, int64_t transfer, int64_t ticket) {
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
    request.ticket = ticket;
    move(std::move(request), status, cache, link, hold_stream, transfer);
  });
}

template <Direction direction>
void move_entry(const at::Tensor& status, at::TensorList cache, const at::Tensor& dst_blocks, int64_t link,
                int64_t cache_id, int64_t src_batch, int64_t dst_batch, int64_t size, int64_t src_layer,
                int64_t dst_layer, int64_t num_layers, int64_t tensors_per_layer, int64_t timeout_ms,
                bool hold_stream, int64_t transfer, int64_t ticket) {
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
    request.ticket = ticket;
    move(std::move(request), status, cache, link, hold_stream, transfer);
  });
}

void push_blocks(const at::Tensor& status, at::TensorList cache, const at::Tensor& src_blocks,
                 const at::Tensor& dst_blocks, int64_t link, int64_t model_id, int64_t src_layer,
                 int64_t dst_layer, int64_t num_layers, int64_t tensors_per_layer, int64_t timeout_ms,
                 bool hold_stream, int64_t transfer) {
  move_blocks<Direction::kPush>(status, cache, src_blocks, dst_blocks, link, model_id, src_layer, dst_layer,
                                num_layers, tensors_per_layer, timeout_ms, hold_stream, transfer, 0);
}

void push_cache(const at::Tensor& status, at::TensorList cache, const at::Tensor& dst_blocks, int64_t link,
                int64_t cache_id, int64_t src_batch, int64_t dst_batch, int64_t size, int64_t src_layer,
                int64_t dst_layer, int64_t num_layers, int64_t tensors_per_layer, int64_t timeout_ms,
                bool hold_stream, int64_t transfer) {
  move_entry<Direction::kPush>(status, cache, dst_blocks, link, cache_id, src_batch, dst_batch, size,
                               src_layer, dst_layer, num_layers, tensors_per_layer, timeout_ms, hold_stream,
                               transfer, 0);
}

int64_t publish(const at::Tensor& after, int64_t cache_id, int64_t link_handle, int64_t first_tensor,
                int64_t num_tensors, int64_t timeout_ms) {
  int64_t task = 0;
  as_python_error([&] {
    const char* asked = "publish";
    const auto link = require_link(link_handle, asked);
    const int device = link->engine().device();
    const bool is_host = after.device().is_cpu();
    const StreamInUse stream(device);
    require_no_capture(stream, asked);
    TransferPlan plan = plan_publication(*link, cache_id, first_tensor, num_tensors, timeout_ms);
    // No kernel writes host memory: what is there is there when we are called.
    const bool is_in_order =
        is_host ? !is_on_device(plan.local->tensors.front().reach) : after.device().index() == device;
    if (!is_in_order)
      refuse(Message::ordering_tensor_elsewhere, {{"asked", asked},
                                                  {"value", after.device().str()},
                                                  {"what", "the cache is"},
                                                  {"where", join("npu:", device)}});
    const OpSpan span([&] { return join(asked, " peer=", link->peer().name); });
    const SlotUse slot = link->take_slot(asked);
    auto transfer = make_kept<Transfer>(link, std::move(plan), slot);
    link->sends(slot, transfer);
    link->engine().watch(transfer);
    try {
      transfer->submit(false, asked);
    } catch (...) {
      transfer->cancel("it was refused before it began");
      throw;
    }
    if (is_host) {
      transfer->start_from_host(0);
    } else {
      queue(asked, QueueGates{starting(*transfer), stream.raw});
    }
    task = tasks().add(std::move(transfer));
  });
  return task;
}

// `ask`: for the gates to queue on the caller's stream. `ask_on_host`: does it at once; the code for the
// status.
template <typename Describe, typename Ask, typename AskOnHost>
void layer_op(const char* asked, const at::Tensor& status, const at::Tensor& ordering, int64_t binding_number,
              Describe describe, Ask ask, AskOnHost ask_on_host) {
  as_python_error([&] {
    const auto binding = bindings().get(binding_number, asked);
    const OpSpan span([&] { return describe(*binding); });
    if (is_on_host(status, ordering)) {
      require_int32(status, asked);
      write_status(status, ask_on_host(*binding));
      return;
    }
    require_status(status, binding->device(), asked);
    if (ordering.device() != status.device())
      refuse(Message::ordering_tensor_elsewhere, {{"asked", asked},
                                                  {"value", ordering.device().str()},
                                                  {"what", "the caches are"},
                                                  {"where", status.device().str()}});
    const StreamInUse stream(binding->device());
    const OpStream caller{stream.raw, c10_npu::isStreamCapturingMayInitCtx(stream.raw)};
    queue(asked, QueueSteps{ask(*binding, caller), stream.raw, status.data_ptr()});
  });
}

void push_layer(const at::Tensor& status, const at::Tensor& after, int64_t layer, int64_t binding) {
  layer_op(
      "push_layer", status, after, binding, [&](const Binding& bound) { return bound.push_span(layer); },
      [&](Binding& bound, const OpStream& stream) { return bound.push_layer(layer, stream); },
      [&](Binding& bound) { return bound.push_layer_from_host(layer); });
}

void wait_layer(const at::Tensor& status, const at::Tensor& before, int64_t layer, int64_t binding) {
  layer_op(
      "wait_layer", status, before, binding, [&](const Binding& bound) { return bound.wait_span(layer); },
      [&](Binding& bound, const OpStream& stream) { return bound.wait_layer(layer, stream); },
      [&](Binding& bound) { return bound.wait_layer_on_host(layer); });
}

void finish(const at::Tensor& status, const at::Tensor& before, int64_t binding) {
  layer_op(
      "finish", status, before, binding, [](const Binding& bound) { return bound.finish_span(); },
      [&](Binding& bound, const OpStream& stream) { return bound.finish(stream); },
      [&](Binding& bound) { return bound.finish_on_host(); });
}

}  // namespace

TORCH_LIBRARY(torch_llm_datadist, m) {
  spans::ask(&is_profiled);
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
        "bool hold_stream, int transfer, "
        "int ticket=0) -> ()");      // of the peer's `publish`, when the blocks are ready; 0: they are
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
        "bool hold_stream, int transfer, int ticket=0) -> ()");
  m.def("publish("
        "Tensor after, "             // produced by the last kernel that writes what is published
        "int cache_id, "             // of the local cache
        "int link, "                 // to the peer that will pull
        "int first_tensor, int num_tensors, "
        "int timeout_ms) -> int");   // from now until the peer has pulled; returns the task
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
  m.def("store_layer("
        "Tensor(a!) status, "        // marked as written: this keeps the store in a graph, and in its place there
        "Tensor keys, "              // [tokens, *row]
        "Tensor? values, "           // as keys; absent where a layer has one tensor (MLA)
        "Tensor slots, "             // int64[tokens] beside the cache: block * block_size + offset
        "int layer, "
        "int cache) -> ()");         // Cache.handle: the graph never sees the cache
  m.def("read_layer("
        "Tensor(a!) status, "
        "Tensor keys, "              // what was stored: dtype and row of the result; the cache's are checked
        "Tensor? values, "
        "Tensor block_table, "       // int64[blocks] or [batch, blocks] beside the cache; -1 is padding
        "int block_size, "           // tokens of a block: the result's shape must not depend on hidden things
        "int layer, "
        "int cache) -> (Tensor, Tensor)");
  // clang-format on
}

// The bodies ask where the tensors are.
static void implement(torch::Library& m) {
  m.impl("push_blocks", &push_blocks);
  m.impl("pull_blocks", &move_blocks<Direction::kPull>);
  m.impl("push_cache", &push_cache);
  m.impl("pull_cache", &move_entry<Direction::kPull>);
  m.impl("publish", &publish);
  m.impl("push_layer", &push_layer);
  m.impl("wait_layer", &wait_layer);
  m.impl("finish", &finish);
}

TORCH_LIBRARY_IMPL(torch_llm_datadist, PrivateUse1, m) { implement(m); }
TORCH_LIBRARY_IMPL(torch_llm_datadist, CPU, m) { implement(m); }

}  // namespace datadist
