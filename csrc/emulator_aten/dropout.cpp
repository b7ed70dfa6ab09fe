// native_dropout takes no generator, so its CPU kernel would draw from the host's: composed here of ops that
// take one.
#include <ATen/ops/empty_like.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/zeros_like.h>

#include "emulator_aten/special.h"

namespace emu_aten {
namespace {

std::tuple<at::Tensor, at::Tensor> native_dropout(const at::Tensor& input, double p,
                                                  std::optional<bool> train) {
  const auto as_mask = input.options().dtype(at::kBool);
  if (input.numel() == 0 || !train.value_or(true)) return {input.clone(), at::ones_like(input, as_mask)};
  if (p == 1) return {at::zeros_like(input), at::zeros_like(input, as_mask)};
  at::Tensor mask = at::empty_like(input, as_mask).bernoulli_(1 - p);
  return {input.mul(mask).mul_(1 / (1 - p)), mask};
}

}  // namespace

void install_dropout(torch::Library& npu) { npu.impl("native_dropout", TORCH_FN(native_dropout)); }

}  // namespace emu_aten
