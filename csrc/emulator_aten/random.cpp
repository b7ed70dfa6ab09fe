#include "emulator_aten/random.h"

#include <ATen/CPUGeneratorImpl.h>

#include <mutex>

#include "torch_npu/csrc/aten/NPUGeneratorImpl.h"

namespace emu_aten {
namespace {

// Neighbouring offsets must not give related streams (the finaliser of splitmix64).
uint64_t mix(uint64_t value) {
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9ull;
  value = (value ^ (value >> 27)) * 0x94d049bb133111ebull;
  return value ^ (value >> 31);
}

}  // namespace

at::Generator generator_for_one_op(const std::optional<at::Generator>& device_generator,
                                   c10::DeviceIndex device) {
  at::Generator source = device_generator && device_generator->defined()
                             ? *device_generator
                             : at_npu::detail::getDefaultNPUGenerator(device);
  TORCH_CHECK(source.device().is_privateuseone(), "Expected a 'npu' device type for generator but found '",
              source.device(), "'");
  std::lock_guard<std::mutex> lock(source.mutex());
  const uint64_t offset = source.get_offset();
  constexpr uint64_t kStep = 4;  // offsets of philox generators come in fours
  source.set_offset(offset + kStep);
  return at::detail::createCPUGenerator(mix(source.current_seed() + mix(offset + 1)));
}

}  // namespace emu_aten
