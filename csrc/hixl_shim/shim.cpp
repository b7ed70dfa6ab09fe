#include "hixl_shim/shim.h"

#include <dlfcn.h>

#include <cstring>
#include <mutex>
#include <new>

#include "hixl_abi/hixl.h"

namespace {

using ge::AscendString;
using hixl::Hixl;
using hixl::Status;

// A method of a class takes its object as a first argument.
struct Functions {
  void (*string_new)(AscendString*, const char*);
  bool (*string_less)(const AscendString*, const AscendString&);
  void (*engine_new)(void*);
  void (*engine_delete)(void*);
  void (*finalize)(void*);
  Status (*initialize)(void*, const AscendString&, const hixl::Options&);
  Status (*register_memory)(void*, const hixl::MemDesc&, hixl::MemType, hixl::MemHandle&);
  Status (*deregister_memory)(void*, hixl::MemHandle);
  Status (*connect)(void*, const AscendString&, int32_t);
  Status (*disconnect)(void*, const AscendString&, int32_t);
  Status (*transfer)(void*, const AscendString&, hixl::TransferOp, const std::vector<hixl::TransferOpDesc>&,
                     const hixl::TransferArgs&, hixl::TransferReq&);
  Status (*status)(void*, const hixl::TransferReq&, hixl::TransferStatus&);
};

// In the order of Functions.
constexpr const char* kSymbols[] = {
    "_ZN2ge12AscendStringC1EPKc",
    "_ZNK2ge12AscendStringltERKS0_",
    "_ZN4hixl4HixlC1Ev",
    "_ZN4hixl4HixlD1Ev",
    "_ZN4hixl4Hixl8FinalizeEv",
    "_ZN4hixl4Hixl10InitializeERKN2ge12AscendStringERKSt3mapIS2_S2_St4lessIS2_ESaISt4pairIS3_S2_EEE",
    "_ZN4hixl4Hixl11RegisterMemERKNS_7MemDescENS_7MemTypeERPv",
    "_ZN4hixl4Hixl13DeregisterMemEPv",
    "_ZN4hixl4Hixl7ConnectERKN2ge12AscendStringEi",
    "_ZN4hixl4Hixl10DisconnectERKN2ge12AscendStringEi",
    "_ZN4hixl4Hixl13TransferAsyncERKN2ge12AscendStringENS_10TransferOpERKSt6vectorINS_14TransferOpDescESaIS7_"
    "EERKNS_"
    "12TransferArgsERPv",
    "_ZN4hixl4Hixl17GetTransferStatusERKPvRNS_14TransferStatusE",
};
constexpr size_t kCount = std::size(kSymbols);
static_assert(sizeof(Functions) == kCount * sizeof(void*));

Functions functions;
bool is_loaded = false;

std::string load(const char* otherwise) {
  void* library = dlopen("libcann_hixl.so", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr && otherwise != nullptr) library = dlopen(otherwise, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr)
    return std::string("libcann_hixl.so, CANN's HIXL engine, is not found: ") + dlerror();
  std::string missing;
  void* found[kCount];
  for (size_t i = 0; i < kCount; ++i) {
    found[i] = dlsym(library, kSymbols[i]);
    if (found[i] == nullptr) missing += std::string(" ") + kSymbols[i];
  }
  if (!missing.empty()) return "libcann_hixl.so lacks" + missing + "; CANN 8.5 and later have it";
  std::memcpy(&functions, found, sizeof functions);
  is_loaded = true;
  return "";
}

template <typename Call>
Status guarded(const Call& call) {
  try {
    return call();
  } catch (const std::exception&) {
    return hixl::kFailed;
  }
}

}  // namespace

// Where the templates of the standard library meet these two, CANN's own are called.
ge::AscendString::AscendString(const char* name) { functions.string_new(this, name); }
bool ge::AscendString::operator<(const AscendString& other) const {
  return functions.string_less(this, other);
}

struct DatadistHixl {
  alignas(64) unsigned char object[64] = {};  // CANN's has 8 bytes
};

const char* datadistHixlLoad(const char* otherwise) {
  static std::mutex mutex;
  static auto* why_not = new std::string;
  const std::lock_guard lock(mutex);
  if (!is_loaded) *why_not = load(otherwise);
  return why_not->c_str();
}

const char* datadistHixlSymbol(size_t index) { return index < kCount ? kSymbols[index] : nullptr; }

DatadistHixl* datadistHixlNew() {
  if (!is_loaded) return nullptr;
  auto* const engine = new (std::nothrow) DatadistHixl;
  if (engine != nullptr) functions.engine_new(engine->object);
  return engine;
}

void datadistHixlDelete(DatadistHixl* engine) {
  if (engine == nullptr) return;
  functions.finalize(engine->object);
  functions.engine_delete(engine->object);
  delete engine;
}

uint32_t datadistHixlInitialize(DatadistHixl* engine, const char* name, const char* const* options,
                                size_t option_count) {
  return guarded([&] {
    hixl::Options given;
    for (size_t i = 0; i < option_count; ++i)
      given.emplace(AscendString(options[2 * i]), AscendString(options[2 * i + 1]));
    return functions.initialize(engine->object, AscendString(name), given);
  });
}

uint32_t datadistHixlRegister(DatadistHixl* engine, uint64_t address, uint64_t bytes, int on_device,
                              void** handle) {
  return guarded([&] {
    const hixl::MemDesc memory{address, bytes, {}};
    return functions.register_memory(engine->object, memory,
                                     on_device != 0 ? hixl::MEM_DEVICE : hixl::MEM_HOST, *handle);
  });
}

uint32_t datadistHixlDeregister(DatadistHixl* engine, void* handle) {
  return guarded([&] { return functions.deregister_memory(engine->object, handle); });
}

uint32_t datadistHixlConnect(DatadistHixl* engine, const char* remote, int32_t timeout_ms) {
  return guarded([&] { return functions.connect(engine->object, AscendString(remote), timeout_ms); });
}

uint32_t datadistHixlDisconnect(DatadistHixl* engine, const char* remote, int32_t timeout_ms) {
  return guarded([&] { return functions.disconnect(engine->object, AscendString(remote), timeout_ms); });
}

uint32_t datadistHixlPost(DatadistHixl* engine, const char* remote, int writes,
                          const DatadistHixlPiece* pieces, size_t count, void** request) {
  return guarded([&] {
    std::vector<hixl::TransferOpDesc> descs;
    descs.reserve(count);
    for (size_t i = 0; i < count; ++i) descs.push_back({pieces[i].local, pieces[i].remote, pieces[i].bytes});
    return functions.transfer(engine->object, AscendString(remote), writes != 0 ? hixl::WRITE : hixl::READ,
                              descs, hixl::TransferArgs{}, *request);
  });
}

uint32_t datadistHixlPoll(DatadistHixl* engine, void* request, int* status) {
  return guarded([&] {
    // However wide the enumeration is there: what is written has room, and its lowest byte says it.
    alignas(8) hixl::TransferStatus told[4] = {};
    const Status code = functions.status(engine->object, request, told[0]);
    unsigned char low = 0;
    std::memcpy(&low, told, 1);
    *status = DATADIST_HIXL_FAILED;
    if (code == hixl::kOk && low == 0) *status = DATADIST_HIXL_WAITING;
    if (code == hixl::kOk && low == 1) *status = DATADIST_HIXL_COMPLETED;
    return code;
  });
}
