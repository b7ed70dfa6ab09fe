#include "acl/ranges.h"

#include <dlfcn.h>

namespace datadist::acl {
namespace {

struct Functions {
  uint64_t (*start)(const char*, aclrtStream) = nullptr;
  void (*end)(uint64_t) = nullptr;
};

Functions resolve() {
  void* library = dlopen("libms_tools_ext.so", RTLD_LAZY);
  if (library == nullptr) return {};
  const Functions found{reinterpret_cast<decltype(Functions::start)>(dlsym(library, "mstxRangeStartA")),
                        reinterpret_cast<decltype(Functions::end)>(dlsym(library, "mstxRangeEnd"))};
  return found.start != nullptr && found.end != nullptr ? found : Functions{};
}

const Functions& functions() {
  static const Functions found = resolve();
  return found;
}

}  // namespace

uint64_t start_range(const char* message, aclrtStream stream) {
  return functions().start == nullptr ? 0 : functions().start(message, stream);
}

void end_range(uint64_t range) {
  if (range != 0) functions().end(range);
}

}  // namespace datadist::acl
