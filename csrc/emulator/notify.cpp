#include "emulator/notify.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "emulator/address_space.h"
#include "emulator/device.h"
#include "emulator/error.h"
#include "emulator/faults.h"
#include "emulator/futex.h"
#include "emulator/ipc_memory.h"
#include "emulator/runtime.h"

namespace emu {
namespace {

constexpr uint64_t kPage = 64 << 10;  // the largest page of any kernel that this runs on
constexpr size_t kPoolBytes = size_t{64} * NotifyPool::kPerDevice * sizeof(uint32_t);

std::atomic<uint32_t>* map_word(int fd, uint64_t offset) {
  void* at = mmap(nullptr, kPage, PROT_READ | PROT_WRITE, MAP_SHARED, fd,
                  static_cast<off_t>(offset / kPage * kPage));
  if (at == MAP_FAILED) {
    const int problem = errno;
    ::close(fd);
    fail(ACL_ERROR_RT_IPC_ERROR, "mmap of the notify: %s", std::strerror(problem));
  }
  return reinterpret_cast<std::atomic<uint32_t>*>(static_cast<std::byte*>(at) + offset % kPage);
}

}  // namespace

void NotifyPool::make() {
  if (words_ != nullptr) return;
  const int fd = AddressSpace::new_memory(kPoolBytes);
  void* at = mmap(nullptr, kPoolBytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (at == MAP_FAILED) {
    ::close(fd);
    fail(ACL_ERROR_RT_RESOURCE_ALLOC_FAIL, "mmap of the notifies: %s", std::strerror(errno));
  }
  fd_ = fd;
  words_ = static_cast<std::atomic<uint32_t>*>(at);
}

uint64_t NotifyPool::offset(const Device& device, uint32_t id) {
  return (uint64_t(device.id) * kPerDevice + id) * sizeof(uint32_t);
}

std::atomic<uint32_t>* NotifyPool::word(const Device& device, uint32_t id) const {
  return words_ + offset(device, id) / sizeof(uint32_t);
}

uint32_t NotifyPool::take(const Device& device) {
  std::lock_guard lock(mutex_);
  make();
  auto& ids = ids_[static_cast<size_t>(device.id)];
  if (ids == nullptr) ids = std::make_unique<Ids>();
  if (ids->used.all()) {
    fail(ACL_ERROR_RT_NO_NOTIFY_RESOURCE,
         "EE1023: device %d has its %u notifies in use, some perhaps by graphs", device.id, kPerDevice);
  }
  if (is_armed(bit(Fault::Limit)))
    Runtime::get().faults->take("notifies", 1, ACL_ERROR_RT_NO_NOTIFY_RESOURCE);
  while (ids->used[ids->next % kPerDevice]) ++ids->next;
  const uint32_t id = ids->next++ % kPerDevice;
  ids->used[id] = true;
  word(device, id)->store(0);
  return id;
}

void NotifyPool::give_back(const Device& device, uint32_t id) {
  std::lock_guard lock(mutex_);
  ids_[static_cast<size_t>(device.id)]->used[id] = false;
  if (is_armed(bit(Fault::Limit))) Runtime::get().faults->give_back("notifies", 1);
}

Notify::Notify(Device& device, uint32_t flags)
    : device(device),
      flags(flags),
      id(Runtime::get().notify_pool->take(device)),
      word(Runtime::get().notify_pool->word(device, id)),
      peer_enabled(true) {
  point.shared_file = inode_of(Runtime::get().notify_pool->fd());
  point.shared_offset = NotifyPool::offset(device, id);
}

Notify::Notify(Device& device, int fd, uint64_t offset, std::shared_ptr<Import> import, bool peer_enabled)
    : device(device),
      flags(0),
      id(static_cast<uint32_t>(offset / sizeof(uint32_t) % NotifyPool::kPerDevice)),
      word(map_word(fd, offset)),
      import(std::move(import)),
      peer_enabled(peer_enabled),
      offset_(offset) {
  point.shared_file = inode_of(fd);
  ::close(fd);
  point.shared_offset = offset;
  point.tells_others = true;
}

Notify::~Notify() {
  if (is_imported()) {
    munmap(reinterpret_cast<std::byte*>(word) - offset_ % kPage, kPage);
    return;
  }
  close();  // importers hear of it before the id can be anybody else's
  Runtime::get().notify_pool->give_back(device, id);
}

void Notify::close() const {
  if (!is_imported()) Runtime::get().exports->revoke(reinterpret_cast<uintptr_t>(this));
}

void Notify::set() const {
  word->store(1);
  futex_wake_all(word);
}

bool Notify::consume() const {
  uint32_t is_set = 1;
  return word->compare_exchange_strong(is_set, 0);
}

}  // namespace emu
