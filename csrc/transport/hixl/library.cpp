#include "transport/hixl/library.h"

#include <dlfcn.h>

#include "acl/acl_rt.h"
#include "error.h"

namespace datadist::hixl {
namespace {

constexpr const char* kShim = "_hixl_shim.so";

// The folder, with its last '/', of the library that this address is in.
std::string folder_of(const void* address) {
  Dl_info about;
  if (dladdr(address, &about) == 0) return "";
  const std::string path = about.dli_fname;
  return path.substr(0, path.rfind('/') + 1);
}

Library load() {
  Library library;
  const std::string path = folder_of(reinterpret_cast<const void*>(&load)) + kShim;
  void* const handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) {
    library.why_not = join("the plugin's ", kShim, " cannot be loaded: ", dlerror());
    return library;
  }
  const auto find = [&](auto*& function, const char* name) {
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(handle, name));
    if (function == nullptr && library.why_not.empty()) library.why_not = join(path, " has no ", name);
  };
  find(library.load, "datadistHixlLoad");
  find(library.create, "datadistHixlNew");
  find(library.destroy, "datadistHixlDelete");
  find(library.initialize, "datadistHixlInitialize");
  find(library.register_memory, "datadistHixlRegister");
  find(library.deregister_memory, "datadistHixlDeregister");
  find(library.connect, "datadistHixlConnect");
  find(library.disconnect, "datadistHixlDisconnect");
  find(library.post, "datadistHixlPost");
  find(library.poll, "datadistHixlPoll");
  // By its name, as CANN's environment has it; else beside libascendcl.so, where the emulator's is.
  const std::string beside = folder_of(reinterpret_cast<const void*>(&aclrtMemcpyAsync)) + "libcann_hixl.so";
  if (library.why_not.empty()) library.why_not = library.load(beside.c_str());
  return library;
}

}  // namespace

const Library& library() {
  static const Library loaded = load();
  return loaded;
}

int64_t status_code(uint32_t code) {
  switch (code) {
    case 0:
      return kSuccess;
    case 103900:
      return kParamInvalid;
    case 103901:
      return kTimeout;
    case 103902:
      return kNotYetLink;
    case 103903:
      return kLinkFailed;
    case 103905:
      return kFeatureNotEnabled;
    case 203900:
      return kOutOfMemory;
    default:
      return kFailed;
  }
}

std::string describe(const char* call, uint32_t code) {
  const char* meaning = "failed";
  if (code == 103900) meaning = "an argument is invalid";
  if (code == 103901) meaning = "timeout";
  if (code == 103902) meaning = "not connected";
  if (code == 103903) meaning = "connected already";
  if (code == 103905) meaning = "not supported";
  if (code == 203900) meaning = "no resources are left";
  return join("hixl::Hixl::", call, " returned ", code, ": ", meaning);
}

}  // namespace datadist::hixl
