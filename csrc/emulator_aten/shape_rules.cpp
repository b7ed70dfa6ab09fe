#include "emulator_aten/shape_rules.h"

#include <algorithm>
#include <unordered_map>

namespace emu_aten {
namespace {

TensorShape contiguous(at::IntArrayRef sizes, c10::ScalarType dtype) {
  TensorShape shape;
  shape.dtype = dtype;
  shape.sizes = sizes;
  shape.strides.resize(sizes.size());
  int64_t stride = 1;
  for (size_t i = sizes.size(); i-- > 0; stride *= std::max<int64_t>(sizes[i], 1)) shape.strides[i] = stride;
  return shape;
}

bool is_defined(const c10::IValue& value) { return value.isTensor() && value.toTensor().defined(); }

// native_layer_norm(input, normalized_shape, weight, bias, eps): the statistics have the input's dtype, or
// float for a half input with float weights.
std::shared_ptr<const Shapes> layer_norm(Arguments arguments) {
  const at::Tensor& input = arguments[0].toTensor();
  const auto normalized = static_cast<int64_t>(arguments[1].toIntVector().size());
  c10::ScalarType statistics = input.scalar_type();
  for (const size_t parameter : {2, 3}) {
    if (is_defined(arguments[parameter]) && arguments[parameter].toTensor().scalar_type() != statistics) {
      statistics = at::kFloat;
    }
  }
  c10::SmallVector<int64_t, 5> reduced(input.sizes());
  std::fill(reduced.end() - normalized, reduced.end(), 1);

  auto shapes = std::make_shared<Shapes>();
  shapes->returns = {{contiguous(input.sizes(), input.scalar_type())},
                     {contiguous(reduced, statistics)},
                     {contiguous(reduced, statistics)}};
  return shapes;
}

// The sizes of the helper results depend on the mode and on what else is asked for.
std::shared_ptr<const Shapes> only_known_by_running(Arguments) { return nullptr; }

}  // namespace

ShapeRule shape_rule_of(std::string_view op) {
  static const std::unordered_map<std::string_view, ShapeRule> rules = {
      {"aten::native_layer_norm", &layer_norm},
      {"aten::_embedding_bag", &only_known_by_running},
      {"aten::_embedding_bag_forward_only", &only_known_by_running},
      {"aten::_weight_norm_interface", &only_known_by_running},
      {"aten::native_batch_norm", &only_known_by_running},
      {"aten::native_batch_norm.out", &only_known_by_running},
      {"aten::normal.Tensor_float_out", &only_known_by_running},
      {"aten::_batch_norm_with_update", &only_known_by_running},
      {"aten::_native_batch_norm_legit", &only_known_by_running},
      {"aten::_native_batch_norm_legit.no_stats", &only_known_by_running},
  };
  const auto found = rules.find(op);
  return found == rules.end() ? nullptr : found->second;
}

}  // namespace emu_aten
