// Packed transfers: what they cost, and what a receiver says of them.
#include <torch_npu/csrc/core/npu/NPUGraphsUtils.h>
#include <torch_npu/csrc/core/npu/NPUStream.h>
#include <torch_npu/csrc/framework/OpCommand.h>

#include "acl/queue.h"
#include "error.h"
#include "link/expectation.h"
#include "link/instance.h"
#include "link/ticket.h"
#include "messages/messages.h"
#include "plan/cost.h"
#include "plan/packing.h"
#include "python/tensors.h"

namespace datadist {
namespace {

std::map<std::string, double> product_costs(const std::string& soc_name) {
  const ProductCosts& costs = costs_of(soc_name.c_str());
  return {{"submit_copy_us", costs.submit_copy_us},
          {"submit_kernel_us", costs.submit_kernel_us},
          {"submit_word_us", costs.submit_word_us},
          {"task_us", costs.task_us},
          {"kernel_us", costs.kernel_us},
          {"memory_GBs", costs.memory_gb_s},
          {"link_GBs", costs.link_gb_s}};
}

// Behind what the caller's stream has to do: the ids, and then the word that says so. No host waits.
void read_on_current_stream(const Expectation& expectation, const at::Tensor& ids) {
  const aclrtStream stream = c10_npu::getCurrentNPUStream(ids.device().index()).stream(false);
  at_npu::native::OpCommand::RunOpApiV2(
      "expect",
      [stream, from = ids.const_data_ptr(), to = expectation.ids_to_read(),
       bytes = expectation.blocks() * sizeof(int64_t), word = expectation.ids_are_read(),
       refused = expectation.reading_is_refused()]() -> int {
        if (acl::queue_to_host(to, from, bytes, stream) != 0 || acl::queue_write(word, 1, stream) != 0)
          *refused = true;
        return 0;
      });
}

// (it may go packed, what to tell the peer of our staging when that was made just now)
std::pair<bool, std::optional<Exported>> ticket_expect(int64_t number, const at::Tensor& dst_blocks,
                                                       int64_t timeout_ms) {
  constexpr const char* asked = "expect";
  const bool on_device = dst_blocks.device().is_privateuseone();
  if (!(dst_blocks.scalar_type() == at::kLong && dst_blocks.dim() == 1 && dst_blocks.is_contiguous()))
    refuse(Message::bad_value,
           {{"name", join(asked, ": dst_blocks")},
            {"value", join(dst_blocks.scalar_type(), " of ", dst_blocks.dim(), " dimensions")},
            {"expected", "a contiguous int64 tensor of one dimension"}});
  const auto ticket = find_ticket(number, asked, Clock::now() + std::chrono::milliseconds(timeout_ms));
  ticket->require_push(asked);
  if (!ticket->is_offer()) return {false, std::nullopt};
  Link& link = ticket->link_of_expectation();
  const int device = link.engine().device();
  if (!(!on_device || dst_blocks.device().index() == device))
    refuse(Message::bad_value, {{"name", join(asked, ": the device of dst_blocks")},
                                {"value", dst_blocks.device().str()},
                                {"expected", join("npu:", device, ", where the ticket arrives")}});
  if (!(!on_device || c10_npu::currentStreamCaptureStatusMayInitCtx() == c10_npu::CaptureStatus::None))
    refuse(Message::stream_captures_expect, {{"asked", asked}, {"value", "the current stream"}});
  std::optional<Exported> made;
  if (char* const address = link.staging().make_own(link.options().packed_staging_bytes))
    made = link.transport()
               .export_memory({{{address, Reach::kDevice}, link.options().packed_staging_bytes}})
               .front();
  try {
    auto expectation = make_expectation(ticket, on_device ? nullptr : dst_blocks.const_data_ptr<int64_t>(),
                                        static_cast<size_t>(dst_blocks.numel()), on_device);
    ticket->expect(expectation);
    if (on_device) read_on_current_stream(*expectation, dst_blocks);
  } catch (const Error&) {
    if (!made) throw;
    // The peer has to hear of the staging all the same, since it is there: the caller tells it, then raises.
    link.staging().keep_untold(*made);
    throw;
  }
  return {true, made ? made : link.staging().take_untold()};
}

void learn_staging(int64_t handle, const Exported& staging, int64_t bytes) {
  const auto link = require_link(handle, "learn_staging");
  require(bytes > 0 && chunk_bytes_of(static_cast<size_t>(bytes)) > 0, kParamInvalid,
          "learn_staging: ", link->peer().name, " announced staging of ", bytes, " bytes");
  link->staging().learn_peer(staging, static_cast<size_t>(bytes));
}

}  // namespace

void define_packed(py::module_& m) {
  const auto nogil = py::call_guard<py::gil_scoped_release>();
  m.def("ticket_expect", &ticket_expect, py::arg("ticket"), py::arg("dst_blocks"), py::arg("timeout_ms"),
        nogil);
  m.def("learn_staging", &learn_staging, py::arg("link"), py::arg("staging"), py::arg("bytes"), nogil);
  m.def(
      "task_way", [](int64_t task) { return tasks().get(task, "task_way")->way(); }, py::arg("task"), nogil);
  m.def("product_costs", &product_costs, py::arg("soc_name"), nogil);
}

}  // namespace datadist
