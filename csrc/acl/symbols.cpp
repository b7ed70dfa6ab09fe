#include "acl/symbols.h"

#include <dlfcn.h>

#include <string>

#include "error.h"

namespace datadist::acl {
namespace {

Symbols resolve() {
  void* library = dlopen("libascendcl.so", RTLD_LAZY | RTLD_NOLOAD);
  require(library != nullptr, kFeatureNotEnabled,
          "libascendcl.so is not loaded: import torch_npu first, or set TORCH_LLM_DATADIST_EMULATE=1 where "
          "there is no NPU");
  Symbols found{};
  std::string missing;
#define DATADIST_RESOLVE(name, cann)                                          \
  found.name = reinterpret_cast<decltype(found.name)>(dlsym(library, #name)); \
  if (found.name == nullptr) missing += std::string(" " #name " (CANN ") + cann + ")";
  DATADIST_ACL_SYMBOLS(DATADIST_RESOLVE)
#undef DATADIST_RESOLVE
#define DATADIST_LOOK_UP(name, cann) \
  found.name = reinterpret_cast<decltype(found.name)>(dlsym(library, #name));
  DATADIST_OPTIONAL_ACL_SYMBOLS(DATADIST_LOOK_UP)
#undef DATADIST_LOOK_UP
  require(missing.empty(), kFeatureNotEnabled, "the installed CANN lacks", missing, "; install a later one");
  return found;
}

}  // namespace

const Symbols& symbols() {
  static const Symbols found = resolve();
  return found;
}

}  // namespace datadist::acl
