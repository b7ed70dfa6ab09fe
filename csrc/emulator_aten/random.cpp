#include "emulator_aten/random.h"

#include <ATen/CPUGeneratorImpl.h>

#include <mutex>

#include "emulator_aten/alias.h"
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

Draw::Draw(const std::optional<at::Generator>& device_generator, c10::DeviceIndex device) {
  at::Generator source = device_generator && device_generator->defined()
                             ? *device_generator
                             : at_npu::detail::getDefaultNPUGenerator(device);
  TORCH_CHECK(source.device().is_privateuseone(), "Expected a 'npu' device type for generator but found '",
              source.device(), "'");
  constexpr uint64_t kStep = 4;  // offsets of philox generators come in fours
  std::lock_guard<std::mutex> lock(source.mutex());
  const auto state = at::check_generator<at_npu::NPUGeneratorImpl>(source)->philox_npu_state(kStep);
  if (!state.captured_) {
    seed_ = state.seed_.val;
    offset_ = state.offset_.val;
    return;
  }
  offset_ = state.offset_intragraph_;
  Aliases aliases;
  captured_seed_ = aliases.of(*state.seed_.ptr);
  captured_offset_ = aliases.of(*state.offset_.ptr);
}

at::Generator Draw::generator() const {
  const bool captured = captured_seed_.defined();
  const uint64_t seed = captured ? static_cast<uint64_t>(*captured_seed_.const_data_ptr<int64_t>()) : seed_;
  const uint64_t offset =
      offset_ + (captured ? static_cast<uint64_t>(*captured_offset_.const_data_ptr<int64_t>()) : 0);
  return at::detail::createCPUGenerator(mix(seed + mix(offset + 1)));
}

}  // namespace emu_aten
