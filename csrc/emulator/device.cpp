#include "emulator/device.h"

#include "emulator/context.h"
#include "emulator/error.h"
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
  if (ended != nullptr) ended->destroy();
}

std::shared_ptr<Context> Device::primary() {
  std::lock_guard lock(mutex_);
  return primary_;
}

void Device::book(size_t bytes) {
  const size_t now = used.fetch_add(bytes) + bytes;
  if (now > memory) {
    used.fetch_sub(bytes);
    fail(ACL_ERROR_RT_MEMORY_ALLOCATION, "device %d has %zu of %zu bytes in use; %zu more do not fit", id,
         now - bytes, memory, bytes);
  }
  size_t highest = peak.load();
  while (now > highest && !peak.compare_exchange_weak(highest, now)) {
  }
}

}  // namespace emu
