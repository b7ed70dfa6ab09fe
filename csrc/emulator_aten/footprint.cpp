#include "emulator_aten/footprint.h"

#include <algorithm>
#include <array>
#include <string_view>
#include <vector>

#include "emulator_aten/runtime.h"

namespace emu_aten {
namespace {

// A view with more pieces than this is described by its first ones.
constexpr size_t kMostPieces = 4096;

using Name = NameRange;

struct Dim {
  int64_t size;
  size_t step;  // bytes
};

// The dimensions that matter, tightest first. Those that continue each other without a gap are one.
struct Layout {
  size_t width;  // bytes without a gap
  std::vector<Dim> dims;
};

Layout layout_of(const at::Tensor& tensor) {
  Layout layout{static_cast<size_t>(tensor.element_size()), {}};
  std::vector<Dim> dims;
  for (int64_t i = 0; i < tensor.dim(); ++i) {
    if (tensor.size(i) > 1 && tensor.stride(i) != 0) {
      dims.push_back({tensor.size(i), static_cast<size_t>(tensor.stride(i)) * tensor.element_size()});
    }
  }
  std::ranges::sort(dims, {}, &Dim::step);
  for (const Dim& dim : dims) {
    if (layout.dims.empty() && dim.step <= layout.width) {
      layout.width += static_cast<size_t>(dim.size - 1) * dim.step;
    } else if (!layout.dims.empty() && dim.step == layout.dims.back().step * layout.dims.back().size) {
      layout.dims.back().size *= dim.size;
    } else {
      layout.dims.push_back(dim);
    }
  }
  return layout;
}

void name_pieces(const char* at, const Layout& layout, size_t dim, size_t& left, Name name, EmuFacts* facts) {
  if (left == 0) return;
  if (dim == 0) {
    const Dim rows = layout.dims.empty() ? Dim{1, 0} : layout.dims[0];
    const size_t count = std::min(left, static_cast<size_t>(rows.size));
    name(facts, at, layout.width, count, rows.step);
    left -= count;
    return;
  }
  const Dim& outer = layout.dims[dim];
  for (int64_t i = 0; i < outer.size; ++i) {
    name_pieces(at + static_cast<size_t>(i) * outer.step, layout, dim - 1, left, name, facts);
  }
}

void name_tensor(const at::Tensor& tensor, Name name, EmuFacts* facts) {
  if (!tensor.defined() || tensor.numel() == 0) return;
  const Layout layout = layout_of(tensor);
  size_t left = kMostPieces;
  name_pieces(static_cast<const char*>(tensor.const_data_ptr()), layout,
              layout.dims.empty() ? 0 : layout.dims.size() - 1, left, name, facts);
}

void name_value(const c10::IValue& value, Name name, EmuFacts* facts) {
  if (value.isTensor()) return name_tensor(value.toTensor(), name, facts);
  if (value.isTensorList() || value.isOptionalTensorList()) {
    for (const c10::IValue& element : value.toListRef()) name_value(element, name, facts);
  }
}

// Ops that touch only the elements of one argument that an index names: `aten::index_select(self, dim,
// index)`, say. `dim` -1: always the first dimension. Index arguments that are lists pick along the first
// dimension if they hold one tensor.
struct Picks {
  std::string_view name;
  size_t picked;
  int dim;
  int index;
};

constexpr int kUnknown = -2;  // which elements it picks is not worked out: nothing is said about them

constexpr std::array kPicks = {
    Picks{"aten::index_select", 0, 1, 2},
    Picks{"aten::index_copy_", 0, 1, 2},
    Picks{"aten::index_add_", 0, 1, 2},
    Picks{"aten::index_fill_", 0, 1, 2},
    Picks{"aten::index", 0, -1, 1},
    Picks{"aten::index_put_", 0, -1, 1},
    Picks{"aten::_index_put_impl_", 0, -1, 1},
    Picks{"aten::_unsafe_index", 0, -1, 1},
    Picks{"aten::embedding", 0, -1, 1},
    Picks{"aten::gather", 0, kUnknown, 0},
    Picks{"aten::scatter_", 0, kUnknown, 0},
    Picks{"aten::scatter_add_", 0, kUnknown, 0},
    Picks{"aten::scatter_reduce_", 0, kUnknown, 0},
    Picks{"aten::take", 0, kUnknown, 0},
    Picks{"aten::put_", 0, kUnknown, 0},
    Picks{"aten::index_reduce_", 0, kUnknown, 0},
    Picks{"aten::masked_fill_", 0, kUnknown, 0},
    Picks{"aten::masked_scatter_", 0, kUnknown, 0},
    Picks{"aten::masked_select", 0, kUnknown, 0},
};

const Picks* picks_of(const c10::OperatorHandle& op) {
  const std::string& name = op.operator_name().name;
  const auto found = std::ranges::find(kPicks, name, &Picks::name);
  return found == kPicks.end() ? nullptr : &*found;
}

at::Tensor index_of(const c10::IValue& value) {
  if (value.isTensor()) return value.toTensor();
  if (!value.isTensorList() && !value.isOptionalTensorList()) return {};
  const auto list = value.toListRef();
  if (list.size() != 1 || !list[0].isTensor()) return {};
  return list[0].toTensor();
}

void name_picked(const Picks& picks, const torch::jit::Stack& arguments, Name name, EmuFacts* facts) {
  if (picks.dim == kUnknown) return;
  const at::Tensor& tensor = arguments[picks.picked].toTensor();
  const at::Tensor index = index_of(arguments[static_cast<size_t>(picks.index)]);
  if (!index.defined() || tensor.dim() == 0 || tensor.numel() == 0) return;
  if (index.scalar_type() != at::kLong && index.scalar_type() != at::kInt) return;
  int64_t dim = picks.dim < 0 ? 0 : arguments[static_cast<size_t>(picks.dim)].toInt();
  if (dim < 0) dim += tensor.dim();

  const at::Tensor one = tensor.select(dim, 0);
  const at::Tensor dense = index.contiguous();
  const size_t step = static_cast<size_t>(tensor.stride(dim)) * tensor.element_size();
  const Layout layout = layout_of(one);
  const auto* base = static_cast<const char*>(tensor.const_data_ptr());
  size_t left = kMostPieces;
  for (int64_t i = 0; i < dense.numel() && left > 0; ++i) {
    int64_t at = dense.scalar_type() == at::kLong ? dense.const_data_ptr<int64_t>()[i]
                                                  : dense.const_data_ptr<int32_t>()[i];
    if (at < 0) at += tensor.size(dim);
    if (at < 0 || at >= tensor.size(dim)) continue;  // the op itself will complain
    name_pieces(base + static_cast<size_t>(at) * step, layout,
                layout.dims.empty() ? 0 : layout.dims.size() - 1, left, name, facts);
  }
}

}  // namespace

void describe_op(const c10::OperatorHandle& op, const torch::jit::Stack& arguments, EmuFacts* facts) {
  const auto& schema = op.schema().arguments();
  const Picks* picks = picks_of(op);
  for (size_t i = 0; i < arguments.size() && i < schema.size(); ++i) {
    const bool written = schema[i].alias_info() && schema[i].alias_info()->isWrite();
    const Name name = written ? name_write() : name_read();
    if (picks != nullptr && picks->picked == i) {
      name_picked(*picks, arguments, name, facts);
    } else {
      name_value(arguments[i], name, facts);
    }
  }
}

void describe_written(const at::Tensor& tensor, EmuFacts* facts) { name_tensor(tensor, name_write(), facts); }

}  // namespace emu_aten
