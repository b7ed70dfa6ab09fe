// fuzz_plan FIRST COUNT: so many random plans; a seed that fails is printed, and repeats.
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>

#include "plan_oracle.h"

int main(int argc, char** argv) {
  const uint64_t first = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 0;
  const uint64_t count = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 1'000'000;
  const auto began = std::chrono::steady_clock::now();
  for (uint64_t seed = first; seed - first < count; ++seed) {
    try {
      datadist::plan_oracle::try_case(seed);
    } catch (const std::exception& error) {
      std::printf("FAILED: %s\n", error.what());
      return 1;
    }
  }
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - began;
  std::printf("%llu plans, %.0f per second, none wrong\n", static_cast<unsigned long long>(count),
              static_cast<double>(count) / took.count());
}
