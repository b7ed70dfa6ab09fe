// hixl::Hixl of the emulated libcann_hixl.so: the checks, limits and codes of each method. What CANN's has
// beyond these methods (notifies, asynchronous connects, HixlCS*) is not here, and so not found by name.

#include "hixl_abi/hixl.h"

#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>

#include "acl/acl_rt.h"
#include "emulator_hixl/connection.h"
#include "emulator_hixl/faults.h"
#include "emulator_hixl/memory.h"
#include "emulator_hixl/server.h"
#include "emulator_hixl/wire.h"

namespace ge {

AscendString::AscendString(const char* name)
    : name_(std::make_shared<std::string>(name == nullptr ? "" : name)) {}

bool AscendString::operator<(const AscendString& other) const { return *name_ < *other.name_; }

const char* AscendString::GetString() const { return name_->c_str(); }

}  // namespace ge

namespace hixl {

using emu_hixl::Batch;
using emu_hixl::Connection;
using emu_hixl::EngineName;
using emu_hixl::Memory;
using emu_hixl::refuse;
using emu_hixl::Server;

class Hixl::Impl {
 public:
  Status start(const char* name, const Options& options);
  // The thread, or the context, that ran Initialize; else why not.
  Status check_caller(const char* method) const;
  Connection* connection(const char* remote) const;
  Status check_batch(const char* method, const char* remote, TransferOp operation,
                     const std::vector<TransferOpDesc>& descs, Connection** found) const;

  std::shared_ptr<Memory> memory;
  std::map<std::string, std::unique_ptr<Connection>> connections;
  std::map<uintptr_t, std::shared_ptr<Batch>> batches;
  uintptr_t next_batch = 1;
  mutable std::mutex mutex;

 private:
  Status take_options(const Options& options);

  std::thread::id thread_;
  aclrtContext context_ = nullptr;
  bool is_fabric_ = false;
  std::unique_ptr<Server> server_;
};

namespace {

bool is_a3() {
  const char* const soc = aclrtGetSocName();
  return soc != nullptr && std::strncmp(soc, "Ascend910_93", 12) == 0;
}

bool is_number(const std::string& text) {
  return !text.empty() && text.find_first_not_of("0123456789") == std::string::npos;
}

bool is_buffer_pool(const std::string& text) {
  const size_t colon = text.find(':');
  return colon != std::string::npos && is_number(text.substr(0, colon)) && is_number(text.substr(colon + 1));
}

}  // namespace

Status Hixl::Impl::take_options(const Options& options) {
  bool has_pool = false;
  for (const auto& [key_string, value_string] : options) {
    const std::string key = key_string.GetString();
    const std::string value = value_string.GetString();
    emu_hixl::keep_option(key.c_str(), value.c_str());
    bool is_well = false;
    if (key == "EnableUseFabricMem") {
      is_well = value == "0" || value == "1";
      is_fabric_ = value == "1";
    } else if (key == "BufferPool") {
      is_well = is_buffer_pool(value);
      has_pool = value != "0:0";
    } else if (key == "RdmaTrafficClass" || key == "RdmaServiceLevel") {
      is_well = is_number(value);
    } else if (key == "LocalCommRes" || key == "GlobalResourceConfig") {
      is_well = value.empty() || value[0] == '{';
    } else if (key == "AutoConnect") {
      if (value != "0") return refuse(kUnsupported, "Initialize: AutoConnect is not emulated");
      is_well = true;
    }
    if (!is_well)
      return refuse(kParamInvalid, "Initialize: option %s = '%s' is not known", key.c_str(), value.c_str());
  }
  if (is_fabric_ && !is_a3())
    return refuse(kUnsupported, "Initialize: EnableUseFabricMem needs Atlas A3; this is %s",
                  aclrtGetSocName());
  if (is_fabric_ && has_pool)
    return refuse(kParamInvalid, "Initialize: BufferPool and EnableUseFabricMem exclude each other");
  return kOk;
}

Status Hixl::Impl::start(const char* text, const Options& options) {
  EngineName name;
  if (!EngineName::parse(text, &name))
    return refuse(kParamInvalid, "Initialize: '%s'; expected ip, ip:port or [ip]:port", text);
  if (aclrtGetCurrentContext(&context_) != 0 || context_ == nullptr)
    return refuse(kFailed, "Initialize: the thread has no device; call aclrtSetDevice first");
  thread_ = std::this_thread::get_id();
  if (const Status status = take_options(options); status != kOk) return status;
  memory = std::make_shared<Memory>(is_fabric_);
  if (name.port == 0) return kOk;
  const int listening = emu_hixl::listen_at(name);
  if (listening < 0) return refuse(kFailed, "Initialize: listening at %s: %s", text, std::strerror(errno));
  server_ = std::make_unique<Server>(listening, memory);
  return kOk;
}

Status Hixl::Impl::check_caller(const char* method) const {
  aclrtContext current = nullptr;
  if (std::this_thread::get_id() == thread_ || (aclrtGetCurrentContext(&current) == 0 && current == context_))
    return kOk;
  return refuse(kFailed, "%s: to be called from the thread, or in the context, that ran Initialize", method);
}

Connection* Hixl::Impl::connection(const char* remote) const {
  const auto found = connections.find(remote);
  return found == connections.end() ? nullptr : found->second.get();
}

Status Hixl::Impl::check_batch(const char* method, const char* remote, TransferOp operation,
                               const std::vector<TransferOpDesc>& descs, Connection** found) const {
  *found = connection(remote);
  if (*found == nullptr) return refuse(kNotConnected, "%s: not connected to %s", method, remote);
  if ((operation != READ && operation != WRITE) || descs.empty())
    return refuse(kParamInvalid, "%s: operation %d with %zu pieces", method, operation, descs.size());
  for (size_t i = 0; i < descs.size(); ++i) {
    const TransferOpDesc& desc = descs[i];
    if (desc.len == 0 || !(*found)->reaches_here(desc.local_addr, desc.len))
      return refuse(kParamInvalid,
                    "%s: piece %zu: [0x%zx, +%zu) is not registered here, or was after the connect", method,
                    i, desc.local_addr, desc.len);
    if (!(*found)->reaches_there(desc.remote_addr, desc.len))
      return refuse(kParamInvalid,
                    "%s: piece %zu: [0x%zx, +%zu) was not registered at %s when it was connected", method, i,
                    desc.remote_addr, desc.len, remote);
  }
  if ((*found)->is_broken()) return refuse(kFailed, "%s: the connection to %s is lost", method, remote);
  return kOk;
}

// Of a method of an engine that was initialized.
#define EMU_HIXL_ENTER(method)                                                                      \
  if (const Status fault = emu_hixl::enter(method); fault != kOk) return fault;                     \
  if (impl_ == nullptr) return refuse(kFailed, "%s: Initialize was not called, or failed", method); \
  const std::lock_guard lock(impl_->mutex)

#define EMU_HIXL_ENTER_AS_OWNER(method) \
  EMU_HIXL_ENTER(method);               \
  if (const Status status = impl_->check_caller(method); status != kOk) return status

Hixl::Hixl() = default;

Hixl::~Hixl() { delete impl_; }

Status Hixl::Initialize(const ge::AscendString& local_engine, const Options& options) {
  if (const Status fault = emu_hixl::enter("Initialize"); fault != kOk) return fault;
  if (impl_ != nullptr) return refuse(kFailed, "Initialize: it was called before");
  auto impl = std::make_unique<Impl>();
  const Status status = impl->start(local_engine.GetString(), options);
  if (status == kOk) impl_ = impl.release();
  return status;
}

void Hixl::Finalize() {
  emu_hixl::enter("Finalize");
  delete impl_;
  impl_ = nullptr;
}

Status Hixl::RegisterMem(const MemDesc& memory, MemType type, MemHandle& handle) {
  EMU_HIXL_ENTER_AS_OWNER("RegisterMem");
  return impl_->memory->add(memory, type, &handle);
}

Status Hixl::DeregisterMem(MemHandle handle) {
  EMU_HIXL_ENTER_AS_OWNER("DeregisterMem");
  if (impl_->memory->remove(handle)) return kOk;
  return refuse(kParamInvalid, "DeregisterMem: %p is no handle of registered memory", handle);
}

Status Hixl::Connect(const ge::AscendString& remote_engine, int32_t timeout_ms) {
  const char* const remote = remote_engine.GetString();
  EngineName name;
  std::shared_ptr<const Memory> memory;
  {
    EMU_HIXL_ENTER_AS_OWNER("Connect");
    if (!EngineName::parse(remote, &name) || name.port == 0 || timeout_ms <= 0)
      return refuse(kParamInvalid, "Connect: to '%s' within %d ms", remote, timeout_ms);
    if (impl_->connections.count(remote) == 1)
      return refuse(kAlreadyConnected, "Connect: connected to %s already", remote);
    if (impl_->connections.size() >= emu_hixl::most_links())
      return refuse(kResourceExhausted, "Connect: %zu links, the most", impl_->connections.size());
    impl_->connections[remote] = nullptr;  // under way: other calls need not wait for the peer's answer
    memory = impl_->memory;
  }
  auto [status, made] = Connection::make(name, timeout_ms, memory);
  const std::lock_guard lock(impl_->mutex);
  impl_->connections.erase(remote);
  if (status == kOk) impl_->connections[remote] = std::move(made);
  return status;
}

Status Hixl::Disconnect(const ge::AscendString& remote_engine, int32_t) {
  std::unique_ptr<Connection> ended;  // it waits for its threads, and so ends without the lock
  EMU_HIXL_ENTER_AS_OWNER("Disconnect");
  const auto found = impl_->connections.find(remote_engine.GetString());
  if (found == impl_->connections.end() || found->second == nullptr)
    return refuse(kNotConnected, "Disconnect: not connected to %s", remote_engine.GetString());
  ended = std::move(found->second);
  impl_->connections.erase(found);
  return kOk;
}

Status Hixl::TransferSync(const ge::AscendString& remote_engine, TransferOp operation,
                          const std::vector<TransferOpDesc>& descs, int32_t timeout_ms) {
  std::shared_ptr<Batch> batch;
  {
    EMU_HIXL_ENTER_AS_OWNER("TransferSync");
    Connection* connection = nullptr;
    const char* const remote = remote_engine.GetString();
    const Status status = impl_->check_batch("TransferSync", remote, operation, descs, &connection);
    if (status != kOk) return status;
    batch = std::make_shared<Batch>(operation, descs);
    connection->post(batch);
  }
  if (!batch->wait(timeout_ms)) return refuse(kTimeout, "TransferSync: not done in %d ms", timeout_ms);
  if (batch->status() == TransferStatus::COMPLETED) return kOk;
  return refuse(kFailed, "TransferSync: it failed");
}

Status Hixl::TransferAsync(const ge::AscendString& remote_engine, TransferOp operation,
                           const std::vector<TransferOpDesc>& descs, const TransferArgs&,
                           TransferReq& request) {
  EMU_HIXL_ENTER_AS_OWNER("TransferAsync");
  Connection* connection = nullptr;
  const char* const remote = remote_engine.GetString();
  const Status status = impl_->check_batch("TransferAsync", remote, operation, descs, &connection);
  if (status != kOk) return status;
  const auto batch = std::make_shared<Batch>(operation, descs);
  impl_->batches[impl_->next_batch] = batch;
  request = reinterpret_cast<TransferReq>(impl_->next_batch++);
  connection->post(batch);
  return kOk;
}

Status Hixl::GetTransferStatus(const TransferReq& request, TransferStatus& status) {
  EMU_HIXL_ENTER("GetTransferStatus");
  const auto found = impl_->batches.find(reinterpret_cast<uintptr_t>(request));
  if (found == impl_->batches.end())
    return refuse(kParamInvalid, "GetTransferStatus: %p is no request, or its end was told before", request);
  status = found->second->status();
  if (status != TransferStatus::WAITING) impl_->batches.erase(found);
  return kOk;
}

Status Hixl::GetCapability(FeatureType feature, int32_t& value) {
  if (const Status fault = emu_hixl::enter("GetCapability"); fault != kOk) return fault;
  if (feature != AUTO_CONNECT && feature != CLIENT_SERVER_COMM)
    return refuse(kParamInvalid, "GetCapability: feature %d does not exist", feature);
  value = feature == CLIENT_SERVER_COMM ? 1 : 0;
  return kOk;
}

}  // namespace hixl
