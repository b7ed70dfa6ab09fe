// The rules of a link by themselves: slots, windows of staging, liveness. A simulator of thousands of links
// runs them as they are, over a network that is modelled.
#include "link/link.h"
#include "link/liveness.h"
#include "link/page.h"
#include "link/slots.h"
#include "link/staging.h"
#include "messages/messages.h"
#include "plan/packing.h"
#include "python/module.h"

namespace datadist {
namespace {

Liveness::Clock::time_point at(double seconds) {
  return Liveness::Clock::time_point(
      std::chrono::duration_cast<Liveness::Clock::duration>(std::chrono::duration<double>(seconds)));
}

const void* owner_of(uint64_t number) { return reinterpret_cast<const void*>(number); }  // 0 is nobody

uint32_t window_of(uint32_t window) {
  require(window < kStagingWindows, kParamInvalid, "window ", window, ", expected less than ",
          kStagingWindows);
  return window;
}

uint32_t slot_of(uint32_t slot) {
  require(slot < kSlots, kParamInvalid, "slot ", slot, ", expected less than ", kSlots);
  return slot;
}

std::vector<size_t> packed_chunks(const std::vector<int64_t>& strides, int64_t blocks, size_t staging_bytes) {
  const size_t chunk = chunk_bytes_of(staging_bytes);
  for (const int64_t stride : strides)
    require(stride > 0 && static_cast<size_t>(stride) <= chunk, kParamInvalid, "a block of ", stride,
            " bytes does not fit into a chunk of ", chunk);
  require(!strides.empty() && blocks > 0, kParamInvalid, "packed_chunks: no tensors, or ", blocks, " blocks");
  std::vector<size_t> found;
  Packing packing(strides.data(), static_cast<int64_t>(strides.size()), blocks, chunk);
  for (PackedPiece piece; !packing.is_at_end(); packing.next_chunk()) {
    while (packing.next(&piece)) {
    }
    found.push_back(packing.filled());
  }
  return found;
}

// Device memory is the pages, in chunks of that many; the rest is the host's.
std::map<std::string, size_t> link_sizes() {
  const size_t per_slot = sizeof(std::weak_ptr<Transfer>) + 2 * sizeof(uint64_t) + sizeof(uint32_t) +
                          sizeof(Link::Outcome) + sizeof(SlotUse) + 2;
  return {{"page_bytes", kPageBytes},           {"pages_per_chunk", PageArena::kPagesPerChunk},
          {"mail_bytes", sizeof(Mail)},         {"native_bytes", sizeof(Link) + kSlots * per_slot},
          {"staging_windows", kStagingWindows}, {"chunks_per_window", kChunksPerWindow}};
}

}  // namespace

void define_flow(py::module_& m) {
  py::class_<SenderSlots>(m, "SenderSlots")
      .def(py::init([](size_t max_in_flight) {
             if (!(max_in_flight >= 1 && max_in_flight <= kSlots))
               refuse(Message::option_outside, {{"name", "max_in_flight"},
                                                {"value", max_in_flight},
                                                {"expected", join("1 to ", kSlots)}});
             return std::make_unique<SenderSlots>(max_in_flight);
           }),
           py::arg("max_in_flight"))
      .def(
          "take",
          [](SenderSlots& slots, const std::string& peer) {
            const SlotUse use = slots.take("take", peer);
            return std::pair(use.slot, use.epoch);
          },
          py::arg("peer"))
      .def(
          "drained",
          [](SenderSlots& slots, uint32_t slot, uint32_t epoch) { return slots.drained({slot, epoch}); },
          py::arg("slot"), py::arg("epoch"))
      .def(
          "retired",
          [](SenderSlots& slots, uint32_t slot, uint32_t epoch) { return slots.retired({slot, epoch}); },
          py::arg("slot"), py::arg("epoch"));
  py::class_<LinkStaging>(m, "StagingWindows")
      .def(py::init([] { return std::make_unique<LinkStaging>(0); }))
      .def(
          "take",
          [](LinkStaging& staging, uint32_t slot, uint32_t epoch) {
            return staging.take_window({slot_of(slot), epoch});
          },
          py::arg("slot"), py::arg("epoch"))
      .def(
          "give_back", [](LinkStaging& staging, uint32_t slot) { staging.give_back_window(slot_of(slot)); },
          py::arg("slot"))
      .def(
          "claim",
          [](LinkStaging& staging, uint32_t window, uint64_t owner) {
            return staging.claim(window_of(window), owner_of(owner));
          },
          py::arg("window"), py::arg("owner"))
      .def(
          "release",
          [](LinkStaging& staging, uint32_t window, uint64_t owner) {
            staging.release(window_of(window), owner_of(owner));
          },
          py::arg("window"), py::arg("owner"));
  py::class_<Liveness>(m, "Liveness")
      .def(py::init([](int64_t keep_alive_ms, double now) {
             return std::make_unique<Liveness>(std::chrono::milliseconds(keep_alive_ms), at(now));
           }),
           py::arg("keep_alive_ms"), py::arg("now"))
      .def(
          "look", [](Liveness& liveness, uint64_t beats, double now) { liveness.look(beats, at(now)); },
          py::arg("beats"), py::arg("now"))
      .def(
          "is_lost", [](const Liveness& liveness, double now) { return liveness.is_lost(at(now)); },
          py::arg("now"));
  m.def("packed_chunks", &packed_chunks, py::arg("strides"), py::arg("blocks"), py::arg("staging_bytes"));
  m.def("link_sizes", &link_sizes);
}

}  // namespace datadist
