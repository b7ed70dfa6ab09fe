#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>

namespace emu {

// Random interleaving (TORCH_LLM_DATADIST_EMULATE_SEED=n): a stream's worker stops for a moment between
// tasks, and in the middle of large copies, so that the order between streams, never that inside one, is
// another with each seed.
//
// What a stream decides is a function of the seed, its device, its number in the process and how many
// decisions it took before: a program that creates its streams and submits its work in the same order meets
// the same decisions. How they fall in time beside those of other streams is up to the machine.
class Interleaving {
 public:
  // Null when no seed is set.
  static std::unique_ptr<Interleaving> make(int32_t physical_device, int32_t stream);

  Interleaving(uint64_t seed, int32_t physical_device, int32_t stream);

  // How long to stop now; mostly not at all.
  std::chrono::nanoseconds hold();
  // In how many pieces to move this much.
  size_t pieces(size_t bytes);
  // A number that stands for all decisions so far.
  uint64_t decisions() const { return decisions_; }

 private:
  uint64_t draw();
  void note(uint64_t decision);

  uint64_t state_;
  uint64_t decisions_ = 0;
};

}  // namespace emu
