#include "transport/nixl/symbols.h"

#include <dlfcn.h>

#include <memory>
#include <mutex>

#include "error.h"

namespace datadist::nixl {
namespace {

constexpr const char* kNotInstalled = "NIXL is not installed (pip install 'torch_llm_datadist[nixl]')";

struct Library {
  std::mutex mutex;
  std::string path;
  const Symbols* symbols = nullptr;  // once it is loaded, for good
  std::string why_not;               // it was tried, and cannot be used
};

Library& library() {
  static auto* only = new Library;
  return *only;
}

// Returns why it cannot be used, or "".
std::string load(const std::string& path, const Symbols** symbols) {
  // By itself: what it brings along must not stand in for anybody else's.
  void* const handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) return join("NIXL cannot be loaded: ", dlerror());
  auto found = std::make_unique<Symbols>();
#define DATADIST_NIXL_LOAD(name, ...)                                                       \
  found->name = reinterpret_cast<decltype(found->name)>(dlsym(handle, "nixl_capi_" #name)); \
  if (found->name == nullptr)                                                               \
    return join("NIXL at ", path,                                                           \
                " has no nixl_capi_" #name ": install the version that the extra 'nixl' pins");
  DATADIST_NIXL_SYMBOLS(DATADIST_NIXL_LOAD)
#undef DATADIST_NIXL_LOAD
  *symbols = found.release();
  return "";
}

}  // namespace

void set_library(std::string path) {
  Library& known = library();
  std::lock_guard lock(known.mutex);
  if (known.symbols != nullptr || path == known.path) return;
  known.path = std::move(path);
  known.why_not = "";
}

std::string why_not() {
  Library& known = library();
  std::lock_guard lock(known.mutex);
  if (known.path.empty()) return kNotInstalled;
  if (known.symbols == nullptr && known.why_not.empty()) known.why_not = load(known.path, &known.symbols);
  return known.why_not;
}

const Symbols& symbols() {
  const std::string why = why_not();
  require(why.empty(), kFeatureNotEnabled, why, " (207000)");
  return *library().symbols;
}

}  // namespace datadist::nixl
