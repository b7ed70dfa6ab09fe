// The importing half of IPC memory.

#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>

#include "emulator/device.h"
#include "emulator/error.h"
#include "emulator/faults.h"
#include "emulator/ipc_memory.h"
#include "emulator/runtime.h"
#include "emulator/virtual_memory.h"

namespace emu {

Exporter::Exporter(const IpcKey& key) : peer(key.pid, key.started) {
  const int fd = peer.open_fd(key.ledger_fd);
  if (fd < 0) {
    fail(ACL_ERROR_RT_IPC_ERROR, "the exports of process %d cannot be opened: %s", key.pid,
         std::strerror(errno));
  }
  struct stat about{};
  const bool fits = fstat(fd, &about) == 0 && about.st_size == sizeof(Ledger);
  void* at = fits ? mmap(nullptr, sizeof(Ledger), PROT_READ, MAP_SHARED, fd, 0) : MAP_FAILED;
  close(fd);
  if (at == MAP_FAILED || static_cast<const Ledger*>(at)->magic != Ledger::kMagic) {
    if (at != MAP_FAILED) munmap(at, sizeof(Ledger));
    fail(ACL_ERROR_RT_IPC_ERROR, "process %d does not export memory of an emulated device", key.pid);
  }
  ledger = static_cast<const Ledger*>(at);
}

int Exporter::find_ledger(int32_t pid) {
  std::error_code problem;
  const std::string directory = text("/proc/%d/fd", pid);
  for (const auto& entry : std::filesystem::directory_iterator(directory, problem)) {
    const auto target = std::filesystem::read_symlink(entry.path(), problem).string();
    if (target.find(Ledger::kName) != std::string::npos) return std::atoi(entry.path().filename().c_str());
  }
  return -1;
}

Exporter::~Exporter() { munmap(const_cast<Ledger*>(ledger), sizeof(Ledger)); }

bool Exporter::alive() const {
  if (is_armed(bit(Fault::DeadExporter)) && Runtime::get().faults->counts_as_dead(peer.pid)) return false;
  return peer.alive();
}

aclError Import::check_alive(std::string& why) const {
  if (exporter_->alive()) return ACL_SUCCESS;
  why = text("process %d, which exported the memory, is gone", exporter_->peer.pid);
  return ACL_ERROR_RT_LINK_ERROR;
}

aclError Import::check_open(std::string& why) const {
  if (const aclError code = check_alive(why); code != ACL_SUCCESS) return code;
  if (!held_ &&
      exporter_->ledger->slots[key_.slot].generation.load(std::memory_order_acquire) != key_.generation) {
    why = text("process %d freed the memory or closed its key", exporter_->peer.pid);
    return ACL_ERROR_RT_SUSPECT_REMOTE_ERROR;
  }
  return ACL_SUCCESS;
}

aclError Import::check(const Device& from, bool peer_enabled, std::string& why) const {
  if (const aclError code = check_open(why); code != ACL_SUCCESS) return code;
  if (physical_device_ == from.physical_id || peer_enabled) return ACL_SUCCESS;
  for (const auto& device : Runtime::get().devices) {
    if (device->physical_id == physical_device_ && from.may_access(device->id)) return ACL_SUCCESS;
  }
  why =
      text("the memory lies on device %d, and it was imported without ENABLE_PEER_ACCESS", physical_device_);
  return ACL_ERROR_RT_PARAM_INVALID;
}

bool Import::lies_on(const Device& device) const { return physical_device_ == device.physical_id; }

std::shared_ptr<Exporter> Imports::exporter(const IpcKey& key) {
  auto& known = exporters_[{key.pid, key.started}];
  if (auto exporter = known.lock()) {
    if (!exporter->alive())
      fail(ACL_ERROR_RT_IPC_ERROR, "process %d, which exported the memory, is gone", key.pid);
    return exporter;
  }
  auto exporter = std::make_shared<Exporter>(key);
  if (!exporter->alive())
    fail(ACL_ERROR_RT_IPC_ERROR, "process %d, which exported the memory, is gone", key.pid);
  known = exporter;
  return exporter;
}

namespace {

void check_white_list(const Ledger::Slot& slot) {
  if (slot.any_process != 0) return;
  const int32_t self = is_armed(bit(Fault::CountAsPid)) ? Runtime::get().faults->own_pid() : getpid();
  const uint32_t count = slot.pid_count.load();
  for (uint32_t i = 0; i < count && i < Ledger::kMaxPids; ++i) {
    if (slot.pids[i].load() == self) return;
  }
  fail(ACL_ERROR_RT_NO_PERMISSION, "process %d is not on the white list of %u that the exporter gave the key",
       self, count);
}

// Keys stay on their host; on A3 one goes to another server if its processes are on the white list. Fabric
// handles reach as far as the SuperPod.
void check_host(const Exporter& exporter, const Ledger::Slot& slot, bool is_fabric) {
  const Config& config = Runtime::get().config;
  const bool same_host = config.host == exporter.ledger->host;
  const bool same_pod = config.super_pod == exporter.ledger->super_pod;
  const bool is_listed =
      config.profile.has_fabric() && slot.kind != ExportKind::Physical && slot.any_process == 0;
  if (same_host || (same_pod && (is_fabric || is_listed))) return;
  fail(ACL_ERROR_RT_IPC_ERROR,
       "process %d, which exported it, is on host '%s' of SuperPod %lu; this is '%s' of %lu",
       exporter.peer.pid, exporter.ledger->host, exporter.ledger->super_pod, config.host.c_str(),
       config.super_pod);
}

int32_t local_id(int32_t physical, const Device& otherwise) {
  for (const auto& device : Runtime::get().devices) {
    if (device->physical_id == physical) return device->id;
  }
  return otherwise.id;
}

}  // namespace

Imports::Opened Imports::open_shared(const IpcKey& key, ExportKind kind) {
  std::lock_guard lock(mutex_);
  return open_locked(key, kind);
}

Imports::Opened Imports::open_locked(const IpcKey& key, ExportKind kind, bool is_fabric) {
  auto from = exporter(key);
  const Ledger::Slot& slot = from->ledger->slots[key.slot];
  if (slot.generation.load(std::memory_order_acquire) != key.generation || slot.secret != key.secret) {
    fail(ACL_ERROR_RT_IPC_ERROR, "process %d closed the key, or freed its memory", key.pid);
  }
  if (slot.kind != kind)
    fail(ACL_ERROR_RT_PARAM_INVALID, "the key is of something else that process %d exported", key.pid);
  check_host(*from, slot, is_fabric);
  check_white_list(slot);
  const int fd = from->peer.open_fd(slot.fd);
  if (fd < 0) {
    fail(ACL_ERROR_RT_IPC_ERROR, "memory of process %d cannot be opened: %s", key.pid, std::strerror(errno));
  }
  // The exporter counts the memory as in use for as long as this is locked (device.cpp).
  if (kind == ExportKind::Physical) flock(fd, LOCK_SH | LOCK_NB);
  // Had the key ended in between, the number could by now stand for another file.
  if (slot.generation.load(std::memory_order_acquire) != key.generation) {
    ::close(fd);
    fail(ACL_ERROR_RT_IPC_ERROR, "process %d closed the key, or freed its memory", key.pid);
  }
  return {fd, slot.offset, slot.size, slot.physical_device,
          std::make_shared<Import>(from, key, slot.physical_device, kind == ExportKind::Physical)};
}

std::shared_ptr<Physical> Imports::open_physical(const IpcKey& key, Device& device, bool is_fabric) {
  std::lock_guard lock(mutex_);
  Opened opened = open_locked(key, ExportKind::Physical, is_fabric);
  return std::make_shared<Physical>(device, opened.size, opened.fd, std::move(opened.import));
}

uintptr_t Imports::open(const char* text, const IpcKey& key, Device& device, bool enable_peer) {
  std::lock_guard lock(mutex_);
  if (auto it = open_.find(text); it != open_.end()) {
    ++it->second.references;
    return it->second.base;
  }
  const Opened opened = open_locked(key, ExportKind::Memory);
  auto block =
      Runtime::get().memory.adopt(opened.fd, opened.offset, opened.size,
                                  local_id(opened.physical_device, device), opened.import, enable_peer);
  open_[text] = {block->base, 1};
  return block->base;
}

IpcKey Imports::key_of(uint64_t shareable) {
  IpcKey key = IpcKey::unpack(shareable);
  key.started = Peer::start_time(key.pid);
  key.ledger_fd = Exporter::find_ledger(key.pid);
  if (key.started == 0 || key.ledger_fd < 0) {
    fail(ACL_ERROR_RT_IPC_ERROR, "process %d, which exported the memory, is gone", key.pid);
  }
  // The number has room for neither the secret nor the whole generation: both are read where they are kept.
  const Exporter exporter(key);
  const Ledger::Slot& slot = exporter.ledger->slots[key.slot];
  const uint32_t generation = slot.generation.load(std::memory_order_acquire);
  if ((generation & IpcKey::kPackedGeneration) != key.generation || (generation & 1) == 0) {
    fail(ACL_ERROR_RT_IPC_ERROR, "process %d freed the memory", key.pid);
  }
  key.generation = generation;
  key.secret = slot.secret;
  return key;
}

bool Imports::close(const char* text) {
  std::lock_guard lock(mutex_);
  auto it = open_.find(text);
  if (it == open_.end()) return false;
  if (--it->second.references == 0) {
    Runtime::get().memory.release(Place::Imported, it->second.base);
    open_.erase(it);
  }
  return true;
}

std::vector<int32_t> pids_of_servers(const aclrtServerPid* servers, size_t count) {
  const Profile& profile = Runtime::get().config.profile;
  if (!profile.has_fabric()) {
    fail(ACL_ERROR_RT_FEATURE_NOT_SUPPORT, "%s has no links between servers; Atlas A3 has",
         profile.soc_name());
  }
  not_null(servers, "serverPids");
  if (count == 0) fail(ACL_ERROR_RT_PARAM_INVALID, "num is 0");
  std::vector<int32_t> pids;
  for (size_t i = 0; i < count; ++i) {
    if (servers[i].pid == nullptr || servers[i].num == 0) {
      fail(ACL_ERROR_RT_PARAM_INVALID, "serverPids[%zu] names no process", i);
    }
    pids.insert(pids.end(), servers[i].pid, servers[i].pid + servers[i].num);
  }
  return pids;
}

}  // namespace emu
