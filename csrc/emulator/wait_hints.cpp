#include "emulator/wait_hints.h"

#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>

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
  while (true) {
    Stamp* oldest = nullptr;
    uint64_t its_word = 0;
    uint64_t its_time = UINT64_MAX;
    for (Stamp& stamp : set_of(offset)) {
      const uint64_t word = stamp.word.load();
      if (word == offset + 1) return stamp.time.store(time);
      const uint64_t written = word == 0 ? 0 : stamp.time.load();
      if (word != kChanging && written < its_time) {
        oldest = &stamp;
        its_word = word;
        its_time = written;
      }
    }
    if (oldest == nullptr) return;  // killed processes left them changing: nothing is known of the word
    if (!oldest->word.compare_exchange_strong(its_word, kChanging)) continue;
    oldest->time.store(time);
    return oldest->word.store(offset + 1);
  }
}

uint64_t WaitHints::stamp_of(uint64_t offset) {
  uint64_t latest = 0;  // two writers at once may both have made room for the word
  for (const Stamp& stamp : set_of(offset)) {
    if (stamp.word.load() != offset + 1) continue;
    const uint64_t time = stamp.time.load();
    if (stamp.word.load() == offset + 1) latest = std::max(latest, time);
  }
  return latest;
}

void WaitHints::unmap(WaitHints* hints) {
  if (hints != nullptr) munmap(hints, room());
}

}  // namespace emu
