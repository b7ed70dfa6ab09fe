#include "emulator/interleaving.h"

#include <algorithm>

#include "emulator/runtime.h"

namespace emu {
namespace {

using std::chrono::microseconds;
using std::chrono::nanoseconds;

constexpr size_t kLeastPiece = size_t{16} << 10;
constexpr size_t kMostPieces = 8;

// SplitMix64's mixing step.
uint64_t mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EB;
  return x ^ (x >> 31);
}

}  // namespace

std::unique_ptr<Interleaving> Interleaving::make(int32_t physical_device, int32_t stream) {
  const auto& seed = Runtime::get().config.seed;
  return seed ? std::make_unique<Interleaving>(*seed, physical_device, stream) : nullptr;
}

Interleaving::Interleaving(uint64_t seed, int32_t physical_device, int32_t stream)
    : state_(mix(mix(seed) ^ mix((uint64_t(uint32_t(physical_device)) << 32) + uint32_t(stream)))) {}

uint64_t Interleaving::draw() { return mix(state_ += 0x9E3779B97F4A7C15); }

void Interleaving::note(uint64_t decision) { decisions_ = mix(decisions_ ^ decision) + 1; }

nanoseconds Interleaving::hold() {
  const uint64_t drawn = draw();
  const uint64_t dice = drawn % 64;
  const uint64_t rest = drawn >> 8;
  // Most tasks go on at once, some let a neighbour pass, a few let it pass many times.
  microseconds held{0};
  if (dice < 2) {
    held = microseconds(500 + rest % 2000);
  } else if (dice < 8) {
    held = microseconds(50 + rest % 400);
  } else if (dice < 20) {
    held = microseconds(1 + rest % 40);
  }
  note(static_cast<uint64_t>(held.count()));
  return held;
}

size_t Interleaving::pieces(size_t bytes) {
  if (bytes < 2 * kLeastPiece) return 1;
  const size_t most = std::min(bytes / kLeastPiece, kMostPieces);
  const size_t drawn = 1 + draw() % most;
  note(drawn);
  return drawn;
}

}  // namespace emu
