// What a transfer of blocks would queue, and what it would cost, for tests and benchmarks.
#include "plan/choice.h"
#include "plan/copies.h"
#include "plan/packing.h"
#include "python/tensors.h"

namespace datadist {
namespace {

using TensorEnds = std::tuple<uintptr_t, uintptr_t, int64_t, uintptr_t, uintptr_t>;
using Projected = std::tuple<bool, double, double, int64_t, int64_t, int64_t>;
using CopyOfRows = std::tuple<uintptr_t, uintptr_t, size_t, size_t, size_t, size_t>;

std::vector<TensorPair> pairs_of(const std::vector<TensorEnds>& ends) {
  std::vector<TensorPair> tensors;
  for (const auto& [src_at, dst_at, stride, src_slab, dst_slab] : ends) {
    tensors.push_back({reinterpret_cast<char*>(dst_at), reinterpret_cast<char*>(src_at), stride, stride,
                       stride, dst_slab, src_slab});
  }
  return tensors;
}

std::span<const Run> runs_of(const char* asked, const at::Tensor& src_blocks, const at::Tensor& dst_blocks,
                             int64_t src_count, int64_t dst_count) {
  const at::Tensor src = src_blocks.contiguous();
  const at::Tensor dst = dst_blocks.contiguous();
  return plan_runs({src.const_data_ptr<int64_t>(), static_cast<size_t>(src.numel()),
                    dst.const_data_ptr<int64_t>(), static_cast<size_t>(dst.numel()), src_count, dst_count},
                   asked);
}

std::vector<CopyOfRows> plan_copies(const std::vector<TensorEnds>& ends, const at::Tensor& src_blocks,
                                    const at::Tensor& dst_blocks, int64_t src_count, int64_t dst_count) {
  const auto runs = runs_of("plan_copies", src_blocks, dst_blocks, src_count, dst_count);
  std::vector<TensorPair> tensors = pairs_of(ends);
  Copies copies;
  copies.begin(tensors.data(), tensors.size(), runs.data(), runs.size(), {});
  std::vector<CopyOfRows> found;
  for (Rows rows; copies.next(&rows);) {
    found.emplace_back(reinterpret_cast<uintptr_t>(rows.src), reinterpret_cast<uintptr_t>(rows.dst),
                       rows.width, rows.height, rows.src_pitch, rows.dst_pitch);
  }
  return found;
}

Projected choose_way(const std::string& soc_name, const std::vector<TensorEnds>& layer,
                     const at::Tensor& src_blocks, const at::Tensor& dst_blocks, int64_t num_blocks,
                     int64_t layers, int64_t staging_bytes) {
  const auto runs = runs_of("choose_way", src_blocks, dst_blocks, num_blocks, num_blocks);
  const Choice choice = choose(costs_of(soc_name.c_str()), pairs_of(layer), runs, layers,
                               chunk_bytes_of(static_cast<size_t>(staging_bytes)));
  return {choice.packs(),     choice.direct_us,   choice.packed_us,
          choice.size.copies, choice.size.chunks, choice.size.pieces};
}

}  // namespace

void define_plan(py::module_& m) {
  const auto nogil = py::call_guard<py::gil_scoped_release>();
  m.def("plan_copies", &plan_copies, py::arg("tensors"), py::arg("src_blocks"), py::arg("dst_blocks"),
        py::arg("src_count"), py::arg("dst_count"), nogil);
  m.def("choose_way", &choose_way, py::arg("soc_name"), py::arg("layer"), py::arg("src_blocks"),
        py::arg("dst_blocks"), py::arg("num_blocks"), py::arg("layers"), py::arg("staging_bytes"), nogil);
}

}  // namespace datadist
