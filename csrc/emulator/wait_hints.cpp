#include "emulator/wait_hints.h"

#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

namespace emu {

static_assert(std::atomic<uint32_t>::is_always_lock_free, "counts are shared between processes");

size_t WaitHints::room() {
  static const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  return (sizeof(WaitHints) + page - 1) / page * page;
}

WaitHints* WaitHints::map(int fd) {
  struct stat about{};
  if (fstat(fd, &about) != 0 || about.st_size < static_cast<off_t>(room())) return nullptr;
  const off_t at = about.st_size - static_cast<off_t>(room());
  void* page = mmap(nullptr, room(), PROT_READ | PROT_WRITE, MAP_SHARED, fd, at);
  return page == MAP_FAILED ? nullptr : static_cast<WaitHints*>(page);
}

void WaitHints::stamp(uint64_t offset, uint64_t time) {
  Stamp& stamp = stamps_[offset / sizeof(uint64_t) % kStamps];
  stamp.word.store(0);
  stamp.time.store(time);
  stamp.word.store(offset + 1);
}

uint64_t WaitHints::stamp_of(uint64_t offset) const {
  const Stamp& stamp = stamps_[offset / sizeof(uint64_t) % kStamps];
  if (stamp.word.load() != offset + 1) return 0;
  return stamp.time.load();
}

void WaitHints::unmap(WaitHints* hints) {
  if (hints != nullptr) munmap(hints, room());
}

}  // namespace emu
