// Runs all tests, or those whose names contain the first argument.
#include <cstdio>
#include <cstring>

#include "acl/acl.h"
#include "check.h"

int main(int argc, char** argv) {
  if (aclInit(nullptr) != 0) return 1;
  int ran = 0;
  int failed = 0;
  for (const check::Test& test : check::tests()) {
    if (argc > 1 && std::strstr(test.name, argv[1]) == nullptr) continue;
    ++ran;
    try {
      test.body();
    } catch (const std::exception& error) {
      ++failed;
      std::printf("FAILED %s: %s\n", test.name, error.what());
    }
  }
  for (const auto& end : check::at_end()) end();
  aclFinalize();
  std::printf("%d tests, %d failed\n", ran, failed);
  return ran == 0 || failed > 0 ? 1 : 0;
}
