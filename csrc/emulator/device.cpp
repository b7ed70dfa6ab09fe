#include "emulator/device.h"

#include <sys/file.h>
#include <unistd.h>

#include "emulator/context.h"
#include "emulator/error.h"
#include "emulator/faults.h"
#include "emulator/runtime.h"

namespace emu {

std::shared_ptr<Context> Device::set() {
  std::lock_guard lock(mutex_);
  if (primary_ == nullptr) primary_ = Context::create(*this, true);
  ++sets_;
  return primary_;
}

void Device::reset(bool all) {
  std::shared_ptr<Context> ended;
  {
    std::lock_guard lock(mutex_);
    if (primary_ == nullptr) return;
    sets_ = all ? 0 : sets_ - 1;
    if (sets_ == 0) ended = std::move(primary_);
  }
  if (ended == nullptr) return;
  ended->destroy();
  if (is_armed(bit(Fault::Lose))) come_back();
}

// The reset mends the device, but not what was made on it before.
void Device::come_back() {
  Runtime& runtime = Runtime::get();
  const aclError code = runtime.faults->lost(id);
  if (code == ACL_SUCCESS) return;
  for (const auto& context : runtime.contexts.all()) {
    if (&context->device == this) context->stop(code, "the device was lost, and reset since");
  }
  runtime.faults->find_again(id);
  loss_told.store(false);
}

std::shared_ptr<Context> Device::primary() {
  std::lock_guard lock(mutex_);
  return primary_;
}

void Device::book(size_t bytes) {
  if (is_armed(bit(Fault::Limit))) {
    Runtime::get().faults->take("memory", bytes, ACL_ERROR_RT_MEMORY_ALLOCATION);
  }
  unbook_what_nobody_holds();
  const size_t now = used.fetch_add(bytes) + bytes;
  if (now > memory) {
    unbook(bytes);
    fail(ACL_ERROR_RT_MEMORY_ALLOCATION, "device %d has %zu of %zu bytes in use; %zu more do not fit", id,
         now - bytes, memory, bytes);
  }
  size_t highest = peak.load();
  while (now > highest && !peak.compare_exchange_weak(highest, now)) {
  }
}

size_t Device::in_use() {
  unbook_what_nobody_holds();
  return used.load();
}

void Device::unbook_once_unheld(int fd, size_t bytes) {
  {
    std::lock_guard lock(held_mutex_);
    held_.push_back({fd, bytes});
  }
  unbook_what_nobody_holds();
}

// An importer holds a shared lock on the file for as long as it holds the memory (ipc_import.cpp); the kernel
// takes it back from a process that died.
void Device::unbook_what_nobody_holds() {
  std::lock_guard lock(held_mutex_);
  std::erase_if(held_, [this](const HeldElsewhere& memory) {
    if (flock(memory.fd, LOCK_EX | LOCK_NB) != 0) return false;
    close(memory.fd);
    unbook(memory.bytes);
    return true;
  });
}

void Device::unbook(size_t bytes) {
  used.fetch_sub(bytes);
  if (is_armed(bit(Fault::Limit))) Runtime::get().faults->give_back("memory", bytes);
}

}  // namespace emu
