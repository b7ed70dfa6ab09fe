// Random numbers on the emulated device.
#pragma once

#include <ATen/core/Generator.h>
#include <c10/core/Device.h>

#include <optional>

namespace emu_aten {

// A CPU generator for one op, seeded from the device generator's seed and offset, which moves on: the same
// seed gives the same numbers again, as on hardware, but not hardware's numbers.
at::Generator generator_for_one_op(const std::optional<at::Generator>& device_generator,
                                   c10::DeviceIndex device);

}  // namespace emu_aten
