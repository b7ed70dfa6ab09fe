// fuzz_messages FIRST COUNT: so many links whose peer says anything; a seed that fails is printed, and
// repeats.
#include <cstdio>
#include <cstdlib>
#include <exception>

#include "acl/acl.h"
#include "message_oracle.h"

int main(int argc, char** argv) {
  const uint64_t first = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 0;
  const uint64_t count = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 10'000;
  if (aclInit(nullptr) != 0) return 1;
  uint64_t texts = 0;
  uint64_t messages = 0;
  for (uint64_t seed = first; seed - first < count; ++seed) {
    try {
      const auto tried = datadist::message_oracle::try_case(seed);
      texts += static_cast<uint64_t>(tried.texts);
      messages += static_cast<uint64_t>(tried.messages);
    } catch (const std::exception& error) {
      std::printf("FAILED: %s\n", error.what());
      return 1;
    }
  }
  aclFinalize();
  std::printf("%llu texts to the decoders and %llu messages to %llu links, none taken amiss\n",
              static_cast<unsigned long long>(texts), static_cast<unsigned long long>(messages),
              static_cast<unsigned long long>(count));
}
