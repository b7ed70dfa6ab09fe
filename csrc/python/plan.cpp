// What a transfer of blocks would queue, for tests and benchmarks.
#include "plan/copies.h"
#include "python/tensors.h"

namespace datadist {
namespace {

using TensorEnds = std::tuple<uintptr_t, uintptr_t, int64_t, uintptr_t, uintptr_t>;
using CopyOfRows = std::tuple<uintptr_t, uintptr_t, size_t, size_t, size_t, size_t>;

std::vector<CopyOfRows> plan_copies(const std::vector<TensorEnds>& ends, const at::Tensor& src_blocks,
                                    const at::Tensor& dst_blocks, int64_t src_count, int64_t dst_count) {
  const at::Tensor src = src_blocks.contiguous();
  const at::Tensor dst = dst_blocks.contiguous();
  std::vector<Run> runs;
  plan_runs({src.const_data_ptr<int64_t>(), static_cast<size_t>(src.numel()), dst.const_data_ptr<int64_t>(),
             static_cast<size_t>(dst.numel()), src_count, dst_count},
            "plan_copies", &runs);
  std::vector<TensorPair> tensors;
  for (const auto& [src_at, dst_at, stride, src_slab, dst_slab] : ends) {
    tensors.push_back({reinterpret_cast<char*>(dst_at), reinterpret_cast<char*>(src_at), stride, stride,
                       stride, dst_slab, src_slab});
  }
  Copies copies;
  copies.begin(tensors.data(), tensors.size(), runs.data(), runs.size(), {});
  std::vector<CopyOfRows> found;
  for (Rows rows; copies.next(&rows);) {
    found.emplace_back(reinterpret_cast<uintptr_t>(rows.src), reinterpret_cast<uintptr_t>(rows.dst),
                       rows.width, rows.height, rows.src_pitch, rows.dst_pitch);
  }
  return found;
}

}  // namespace

void define_plan(py::module_& m) {
  const auto nogil = py::call_guard<py::gil_scoped_release>();
  m.def("plan_copies", &plan_copies, py::arg("tensors"), py::arg("src_blocks"), py::arg("dst_blocks"),
        py::arg("src_count"), py::arg("dst_count"), nogil);
}

}  // namespace datadist
