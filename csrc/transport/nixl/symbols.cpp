#include "transport/nixl/symbols.h"

#include <dlfcn.h>

#include <mutex>

#include "error.h"

namespace datadist::nixl {
namespace {

std::mutex mutex;

std::string& library() {
  static auto* path = new std::string;
  return *path;
}

const Symbols* load(const std::string& path) {
  // By itself: what it brings along must not stand in for anybody else's.
  void* const handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  const char* const why = handle == nullptr ? dlerror() : "";
  require(handle != nullptr, kFeatureNotEnabled, "NIXL cannot be loaded (207000): ", why);
  auto* found = new Symbols;
#define DATADIST_NIXL_LOAD(name, ...)                                                       \
  found->name = reinterpret_cast<decltype(found->name)>(dlsym(handle, "nixl_capi_" #name)); \
  require(found->name != nullptr, kFeatureNotEnabled, "NIXL at ", path,                     \
          " has no nixl_capi_" #name " (207000): install the version that the extra 'nixl' pins");
  DATADIST_NIXL_SYMBOLS(DATADIST_NIXL_LOAD)
#undef DATADIST_NIXL_LOAD
  return found;
}

}  // namespace

void set_library(std::string path) {
  std::lock_guard lock(mutex);
  library() = std::move(path);
}

std::string why_not() {
  std::lock_guard lock(mutex);
  return library().empty() ? "NIXL is not installed (pip install 'torch_llm_datadist[nixl]')" : "";
}

const Symbols& symbols() {
  std::lock_guard lock(mutex);
  static const Symbols* found = nullptr;
  if (found == nullptr) found = load(library());
  return *found;
}

}  // namespace datadist::nixl
