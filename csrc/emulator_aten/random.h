// Random numbers on the emulated device.
#pragma once

#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>

#include <optional>

namespace emu_aten {

// What one op draws its numbers from: the device generator's seed and offset, which moves on. The same seed
// gives the same numbers again, as on hardware, but not hardware's numbers.
class Draw {
 public:
  Draw(const std::optional<at::Generator>& device_generator, c10::DeviceIndex device);

  // A CPU generator for one run of the op. In a graph each replay gives new numbers: torch_npu puts seed and
  // offset into device memory before it.
  at::Generator generator() const;

 private:
  uint64_t seed_ = 0;
  uint64_t offset_ = 0;
  at::Tensor captured_seed_;  // CPU aliases, in a capture
  at::Tensor captured_offset_;
};

}  // namespace emu_aten
