// copy_ between devices, hosts, dtypes and strides. Where bytes just move, torch_npu's kernel does it: the
// ACL copies that it makes, with their pinned and pageable rules, are what the emulated runtime is there for.
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/core/DeviceGuard.h>

#include "emulator_aten/alias.h"
#include "emulator_aten/boxed.h"
#include "emulator_aten/special.h"

namespace emu_aten {
namespace {

const c10::OperatorHandle& copy_op() {
  static const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("aten::copy_", "");
  return op;
}

const c10::SafeKernelFunction& vendor_kernel() {
  static const auto kernel = copy_op().getComputedKernelForDispatchKey(c10::DispatchKey::PrivateUse1);
  return kernel;
}

void move_bytes(const at::Tensor& to, const at::Tensor& from, bool non_blocking) {
  torch::jit::Stack stack{to, from, non_blocking};
  vendor_kernel().callBoxed(copy_op(), c10::DispatchKeySet(c10::DispatchKey::PrivateUse1), &stack);
}

// On one device, any dtypes and strides, in stream order.
void convert(const at::Tensor& to, const at::Tensor& from) {
  static BoxedKernel kernel(copy_op());
  torch::jit::Stack stack{to, from, false};
  kernel(copy_op(), {}, &stack);
}

at::Tensor without_bits(const at::Tensor& tensor) { return tensor.resolve_conj().resolve_neg(); }

bool same_bytes(const at::Tensor& a, const at::Tensor& b) {
  return a.scalar_type() == b.scalar_type() && a.sizes() == b.sizes() && a.is_contiguous() &&
         b.is_contiguous() && a.is_conj() == b.is_conj() && a.is_neg() == b.is_neg();
}

// `from`, dense on another device or host, into a device tensor of any strides.
void move_in(const at::Tensor& to, const at::Tensor& from, bool non_blocking) {
  const c10::DeviceGuard guard(to.device());
  if (same_bytes(to, from)) return move_bytes(to, from, non_blocking);
  const at::Tensor dense = at::empty(to.sizes(), to.options().memory_format(c10::MemoryFormat::Contiguous));
  move_bytes(dense, from, non_blocking);
  convert(to, dense);
}

void host_to_device(const at::Tensor& to, const at::Tensor& from, bool non_blocking) {
  move_in(to, without_bits(from).expand(to.sizes()).to(to.scalar_type()).contiguous(), non_blocking);
}

void device_to_host(const at::Tensor& to, const at::Tensor& from, bool non_blocking) {
  const at::Tensor dense = without_bits(from).contiguous();
  if (same_bytes(to, dense)) return move_bytes(to, dense, non_blocking);
  const at::Tensor on_host = at::empty_like(dense, dense.options().device(c10::kCPU));
  move_bytes(on_host, dense, /*non_blocking=*/false);
  to.copy_(on_host);
}

void device_to_device(const at::Tensor& to, const at::Tensor& from, bool non_blocking) {
  if (to.device() != from.device()) {
    move_in(to, without_bits(from).expand(to.sizes()).to(to.scalar_type()).contiguous(), non_blocking);
  } else if (same_bytes(to, from)) {
    move_bytes(to, from, non_blocking);
  } else {
    convert(to, from);
  }
}

at::Tensor& copy_(at::Tensor& self, const at::Tensor& source, bool non_blocking) {
  if (self.is_same(source) || self.numel() == 0) return self;
  if (!on_npu(source)) {
    host_to_device(self, source, non_blocking);
  } else if (!on_npu(self)) {
    device_to_host(self, source, non_blocking);
  } else {
    device_to_device(self, source, non_blocking);
  }
  return self;
}

}  // namespace

void install_copy(torch::Library& npu) {
  vendor_kernel();  // looked up now, while it still is torch_npu's
  npu.impl("copy_", TORCH_FN(copy_));
}

}  // namespace emu_aten
