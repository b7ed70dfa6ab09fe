// The exporting half of IPC memory.

#include <sys/mman.h>
#include <sys/random.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "emulator/device.h"
#include "emulator/error.h"
#include "emulator/ipc_memory.h"
#include "emulator/runtime.h"
#include "emulator/stack.h"

namespace emu {

void Exports::make_ledger() {
  if (ledger_ != nullptr) return;
  const int fd = memfd_create(Ledger::kName, MFD_CLOEXEC);
  if (fd < 0 || ftruncate(fd, sizeof(Ledger)) != 0) {
    fail(ACL_ERROR_RT_RESOURCE_ALLOC_FAIL, "memfd for exports: %s", std::strerror(errno));
  }
  void* at = mmap(nullptr, sizeof(Ledger), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (at == MAP_FAILED) {
    ::close(fd);
    fail(ACL_ERROR_RT_RESOURCE_ALLOC_FAIL, "mmap of the exports: %s", std::strerror(errno));
  }
  ledger_fd_ = fd;
  ledger_ = static_cast<Ledger*>(at);
  const Config& config = Runtime::get().config;
  ledger_->super_pod = config.super_pod;
  std::strncpy(ledger_->host, config.host.c_str(), Ledger::kMostHost - 1);
  ledger_->magic = Ledger::kMagic;
}

IpcKey Exports::add(const Range& range, bool any_process) {
  std::lock_guard lock(mutex_);
  make_ledger();
  if (open_.size() >= Ledger::kSlots)
    fail(ACL_ERROR_RT_RESOURCE_ALLOC_FAIL, "%u keys are open", Ledger::kSlots);
  while ((ledger_->slots[next_ % Ledger::kSlots].generation.load() & 1) != 0) ++next_;
  const uint32_t index = next_++ % Ledger::kSlots;
  Ledger::Slot& slot = ledger_->slots[index];
  slot.any_process = any_process ? 1 : 0;
  slot.kind = range.kind;
  if (getrandom(&slot.secret, sizeof slot.secret, 0) != sizeof slot.secret) slot.secret = range.owner ^ next_;
  slot.fd = range.fd;
  slot.physical_device = range.physical_device;
  slot.offset = range.offset;
  slot.size = range.size;
  slot.pid_count.store(0);
  const uint32_t generation = slot.generation.fetch_add(1) + 1;
  open_.push_back({index, range.owner, Stack::here()});
  return {getpid(), Peer::start_time(getpid()), ledger_fd_, index, generation, slot.secret};
}

Ledger::Slot& Exports::slot_of(const IpcKey& key) {
  if (ledger_ == nullptr || ledger_->slots[key.slot].generation.load() != key.generation ||
      ledger_->slots[key.slot].secret != key.secret) {
    fail(ACL_ERROR_RT_PARAM_INVALID, "the key is not, or no longer, an export of this process");
  }
  return ledger_->slots[key.slot];
}

void Exports::allow(const IpcKey& key, const int32_t* pids, size_t count) {
  std::lock_guard lock(mutex_);
  allow(slot_of(key), pids, count);
}

void Exports::allow(uintptr_t owner, const int32_t* pids, size_t count) {
  std::lock_guard lock(mutex_);
  bool exported = false;
  for (const Open& open : open_) {
    if (open.owner != owner) continue;
    exported = true;
    allow(ledger_->slots[open.slot], pids, count);
  }
  if (!exported) fail(ACL_ERROR_RT_PARAM_INVALID, "it was not exported yet, so it has no white list");
}

void Exports::allow(Ledger::Slot& slot, const int32_t* pids, size_t count) {
  const uint32_t before = slot.pid_count.load();
  if (before + count > Ledger::kMaxPids) {
    fail(ACL_ERROR_RT_PARAM_INVALID, "%u pids and %zu more; the most is %u", before, count, Ledger::kMaxPids);
  }
  for (size_t i = 0; i < count; ++i) slot.pids[before + i].store(pids[i]);
  slot.pid_count.store(before + static_cast<uint32_t>(count));
}

void Exports::end(uint32_t slot) {
  ledger_->slots[slot].generation.fetch_add(1);
  std::erase_if(open_, [slot](const Open& open) { return open.slot == slot; });
}

void Exports::close(const IpcKey& key) {
  std::lock_guard lock(mutex_);
  slot_of(key);
  end(key.slot);
}

std::vector<std::shared_ptr<const Stack>> Exports::open_keys() {
  std::lock_guard lock(mutex_);
  std::vector<std::shared_ptr<const Stack>> made;
  for (const Open& open : open_) made.push_back(open.made);
  return made;
}

bool Exports::has(uintptr_t owner) {
  std::lock_guard lock(mutex_);
  return std::any_of(open_.begin(), open_.end(), [owner](const Open& open) { return open.owner == owner; });
}

void Exports::revoke(uintptr_t owner) {
  std::lock_guard lock(mutex_);
  for (size_t i = open_.size(); i-- > 0;) {
    if (open_[i].owner == owner) end(open_[i].slot);
  }
}

}  // namespace emu
