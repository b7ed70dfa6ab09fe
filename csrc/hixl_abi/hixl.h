// What CANN's libcann_hixl.so shows, as far as it is used here: names, sizes and numbers of its manual, in
// our words. CANN is built with the old ABI of libstdc++, so whoever includes this is, too. None of these
// names has a std::string in it, and so they come out the same from either ABI.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#if _GLIBCXX_USE_CXX11_ABI
#error "to be compiled with -D_GLIBCXX_USE_CXX11_ABI=0"
#endif

#define HIXL_API __attribute__((visibility("default")))

namespace ge {

// Made and compared by the library's own functions only; copies and the end of one are the shared pointer's.
class AscendString {
 public:
  HIXL_API AscendString(const char* name);
  HIXL_API bool operator<(const AscendString& other) const;
  HIXL_API const char* GetString() const;

 private:
  std::shared_ptr<std::string> name_;
};
static_assert(sizeof(AscendString) == 16);

}  // namespace ge

namespace hixl {

using Status = uint32_t;
constexpr Status kOk = 0;
constexpr Status kParamInvalid = 103900;
constexpr Status kTimeout = 103901;
constexpr Status kNotConnected = 103902;
constexpr Status kAlreadyConnected = 103903;
constexpr Status kUnsupported = 103905;
constexpr Status kResourceExhausted = 203900;
constexpr Status kFailed = 503900;

enum MemType : int32_t { MEM_DEVICE = 0, MEM_HOST = 1 };
enum TransferOp : int32_t { READ = 0, WRITE = 1 };
enum class TransferStatus : int32_t { WAITING = 0, COMPLETED = 1, TIMEOUT = 2, FAILED = 3 };
enum FeatureType : int32_t { AUTO_CONNECT = 0, CLIENT_SERVER_COMM = 1 };

using MemHandle = void*;
using TransferReq = void*;

struct MemDesc {
  uintptr_t addr;
  size_t len;
  uint8_t reserved[128];
};
static_assert(sizeof(MemDesc) == 144);

struct TransferOpDesc {
  uintptr_t local_addr;
  uintptr_t remote_addr;
  size_t len;
};
static_assert(sizeof(TransferOpDesc) == 24);

struct TransferArgs {
  uint8_t reserved[128];
};

using Options = std::map<ge::AscendString, ge::AscendString>;

class Hixl {
 public:
  HIXL_API Hixl();
  HIXL_API ~Hixl();
  HIXL_API Status Initialize(const ge::AscendString& local_engine, const Options& options);
  HIXL_API void Finalize();
  HIXL_API Status RegisterMem(const MemDesc& memory, MemType type, MemHandle& handle);
  HIXL_API Status DeregisterMem(MemHandle handle);
  HIXL_API Status Connect(const ge::AscendString& remote_engine, int32_t timeout_ms);
  HIXL_API Status Disconnect(const ge::AscendString& remote_engine, int32_t timeout_ms);
  HIXL_API Status TransferSync(const ge::AscendString& remote_engine, TransferOp operation,
                               const std::vector<TransferOpDesc>& descs, int32_t timeout_ms);
  HIXL_API Status TransferAsync(const ge::AscendString& remote_engine, TransferOp operation,
                                const std::vector<TransferOpDesc>& descs, const TransferArgs& args,
                                TransferReq& request);
  HIXL_API Status GetTransferStatus(const TransferReq& request, TransferStatus& status);
  HIXL_API static Status GetCapability(FeatureType feature, int32_t& value);  // CANN 9.1

 private:
  class Impl;
  Impl* impl_ = nullptr;
};
static_assert(sizeof(Hixl) == 8);

}  // namespace hixl
