#include "transport/engine/placeholders.h"

#include <sys/mman.h>

#include <cerrno>
#include <cstring>

#include "error.h"

namespace datadist::engine {
namespace {

// Behind each range, so that no copy runs from one into the next.
constexpr size_t kGap = 4096;

}  // namespace

Mapped Placeholders::make(const Exported& memory, size_t bytes) {
  require(memory.address != 0 && memory.address + bytes > memory.address, kLinkFailed, "the peer announced ",
          bytes, " bytes of memory at address ", memory.address,
          "; over this transport an address is needed");
  const size_t reserved = bytes + kGap;
  void* const at = mmap(nullptr, reserved, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  require(at != MAP_FAILED, kOutOfMemory, "reserving ", reserved,
          " bytes of address space for a peer's memory failed: ", std::strerror(errno));
  char* const begin = static_cast<char*>(at);
  {
    std::lock_guard lock(mutex_);
    ranges_[begin] = {begin + bytes, {memory.address, memory.kind}};
  }
  std::shared_ptr<void> handle(at, [self = shared_from_this(), reserved](void* address) {
    {
      std::lock_guard lock(self->mutex_);
      self->ranges_.erase(static_cast<const char*>(address));
    }
    munmap(address, reserved);
  });
  return {{begin, Reach::kEngine}, std::move(handle)};
}

std::optional<Placeholders::Remote> Placeholders::find(const void* address, size_t bytes) const {
  const char* const at = static_cast<const char*>(address);
  std::lock_guard lock(mutex_);
  auto range = ranges_.upper_bound(at);
  if (range == ranges_.begin()) return std::nullopt;
  --range;
  if (at >= range->second.end || bytes > static_cast<size_t>(range->second.end - at)) return std::nullopt;
  Remote remote = range->second.remote;
  remote.address += static_cast<uint64_t>(at - range->first);
  return remote;
}

}  // namespace datadist::engine
