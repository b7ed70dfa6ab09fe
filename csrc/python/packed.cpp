// Packed transfers: what the planner makes of them.
#include "error.h"
#include "plan/choice.h"
#include "plan/packing.h"
#include "python/tensors.h"

namespace datadist {
namespace {

using Projected = std::tuple<bool, double, double, int64_t, int64_t, int64_t>;

Projected choose_way(const std::string& soc_name, const std::vector<int64_t>& strides,
                     const at::Tensor& src_blocks, const at::Tensor& dst_blocks, int64_t num_blocks,
                     int64_t layers, int64_t staging_bytes) {
  const at::Tensor src = src_blocks.contiguous();
  const at::Tensor dst = dst_blocks.contiguous();
  std::vector<Run> runs;
  plan_runs({src.const_data_ptr<int64_t>(), static_cast<size_t>(src.numel()), dst.const_data_ptr<int64_t>(),
             static_cast<size_t>(dst.numel()), num_blocks, num_blocks},
            "choose_way", &runs);
  const Choice choice = choose(costs_of(soc_name.c_str()), strides, runs, layers,
                               chunk_bytes_of(static_cast<size_t>(staging_bytes)));
  return {choice.packs(),     choice.direct_us,   choice.packed_us,
          choice.size.copies, choice.size.chunks, choice.size.pieces};
}

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

}  // namespace

void define_packed(py::module_& m) {
  const auto nogil = py::call_guard<py::gil_scoped_release>();
  m.def("choose_way", &choose_way, py::arg("soc_name"), py::arg("strides"), py::arg("src_blocks"),
        py::arg("dst_blocks"), py::arg("num_blocks"), py::arg("layers"), py::arg("staging_bytes"), nogil);
  m.def("product_costs", &product_costs, py::arg("soc_name"), nogil);
}

}  // namespace datadist
