#include "emulator/address_space.h"

#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "emulator/device.h"
#include "emulator/error.h"
#include "emulator/observer.h"
#include "emulator/runtime.h"
#include "emulator/stack.h"
#include "emulator/virtual_memory.h"
#include "emulator/wait_hints.h"

namespace emu {
namespace {

constexpr int kReserve = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;

constexpr size_t round_up(size_t size, size_t unit) { return (size + unit - 1) / unit * unit; }

// Each allocation is one descriptor; the usual soft limit of 1024 is too low for a long-lived process.
void raise_descriptor_limit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur == limit.rlim_max) return;
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
}

}  // namespace

int AddressSpace::new_memory(size_t size) {
  int fd = memfd_create("emulated-npu-memory", MFD_CLOEXEC);
  if (fd < 0 && errno == EMFILE) {
    raise_descriptor_limit();
    fd = memfd_create("emulated-npu-memory", MFD_CLOEXEC);
  }
  if (fd < 0) fail(ACL_ERROR_RT_MEMORY_ALLOCATION, "memfd_create: %s", std::strerror(errno));
  if (ftruncate(fd, static_cast<off_t>(size + WaitHints::room())) != 0) {
    const int problem = errno;
    close(fd);
    fail(ACL_ERROR_RT_MEMORY_ALLOCATION, "ftruncate to %zu bytes: %s", size, std::strerror(problem));
  }
  return fd;
}

uint64_t AddressSpace::file_of(int fd) {
  struct stat about{};
  return fstat(fd, &about) == 0 ? about.st_ino : 0;
}

void AddressSpace::reserve() {
  // Halved until the machine accepts it (a 39-bit address space, or a limit on virtual memory).
  for (size_t unit = size_t{4} << 40; unit >= size_t{8} << 30; unit /= 2) {
    const size_t pinned = unit / 4;
    const size_t total = unit * 4 + pinned + kChunk;
    void* at = mmap(nullptr, total, PROT_NONE, kReserve, -1, 0);
    if (at == MAP_FAILED) continue;
    madvise(at, total, MADV_DONTDUMP);
    const uintptr_t begin = round_up(reinterpret_cast<uintptr_t>(at), kChunk);
    range(Place::Device) = {begin, begin + unit, begin, {{begin, begin + unit}}};
    range(Place::Imported) = {
        begin + unit, begin + 2 * unit, begin + unit, {{begin + unit, begin + 2 * unit}}};
    const uintptr_t host = begin + 2 * unit;
    range(Place::Pinned) = {host, host + pinned, host, {{host, host + pinned}}};
    alias_distance_ = 2 * unit + pinned;
    end_ = host + pinned;
    const size_t table = (end_ - begin) / kChunk * sizeof(Block*);
    void* chunks = mmap(nullptr, table, PROT_READ | PROT_WRITE, kReserve, -1, 0);
    if (chunks == MAP_FAILED) {
      munmap(at, total);
      continue;
    }
    chunks_ = static_cast<Block**>(chunks);
    begin_.store(begin, std::memory_order_release);
    return;
  }
  fail(ACL_ERROR_RT_MEMORY_ALLOCATION, "no room in the address space for emulated device memory");
}

uintptr_t AddressSpace::take(Range& range, size_t length) {
  std::lock_guard lock(room_mutex_);
  auto fits = [&](auto it, uintptr_t from) { return it->second > from && it->second - from >= length; };
  auto it = range.free.upper_bound(range.cursor);
  if (it != range.free.begin()) --it;
  for (size_t tries = 0; tries <= range.free.size(); ++tries, ++it) {
    if (it == range.free.end()) it = range.free.begin();
    if (it == range.free.end()) break;
    // In the run that holds the cursor, start there and not before.
    uintptr_t from = it->first;
    if (tries == 0 && range.cursor > from && range.cursor < it->second) from = range.cursor;
    if (!fits(it, from)) continue;
    const auto [begin, end] = *it;
    range.free.erase(it);
    if (begin < from) range.free.emplace(begin, from);
    if (from + length < end) range.free.emplace(from + length, end);
    range.cursor = from + length;
    return from;
  }
  fail(ACL_ERROR_RT_MEMORY_ALLOCATION, "the emulated address range is used up (%zu bytes asked for)", length);
}

void AddressSpace::give_back(Place place, uintptr_t base, size_t mapped) {
  unmap(place, base, mapped);
  std::lock_guard lock(room_mutex_);
  Range& r = range(place);
  uintptr_t begin = base;
  uintptr_t end = base + round_up(mapped, kChunk) + kChunk;
  auto next = r.free.lower_bound(begin);
  if (next != r.free.end() && next->first == end) {
    end = next->second;
    next = r.free.erase(next);
  }
  if (next != r.free.begin()) {
    auto before = std::prev(next);
    if (before->second == begin) {
      begin = before->first;
      r.free.erase(before);
    }
  }
  r.free.emplace(begin, end);
}

void AddressSpace::map(Place place, uintptr_t base, size_t mapped, int fd, uint64_t offset) {
  void* at = place == Place::Pinned ? reinterpret_cast<void*>(base) : alias(base);
  const int flags = MAP_FIXED | (fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED);
  if (mmap(at, mapped, PROT_READ | PROT_WRITE, flags, fd, static_cast<off_t>(offset)) != MAP_FAILED) return;
  fail(ACL_ERROR_RT_MEMORY_ALLOCATION, "mmap of %zu bytes: %s", mapped, std::strerror(errno));
}

void AddressSpace::unmap(Place place, uintptr_t base, size_t mapped) {
  void* at = place == Place::Pinned ? reinterpret_cast<void*>(base) : alias(base);
  mmap(at, mapped, PROT_NONE, kReserve | MAP_FIXED, -1, 0);  // back into the reservation
  madvise(at, mapped, MADV_DONTDUMP);  // like its neighbours, so that the kernel makes one area of them again
}

std::shared_ptr<Block> AddressSpace::publish(std::shared_ptr<Block> block) {
  block->made = Stack::here();
  std::unique_lock lock(blocks_mutex_);
  const size_t first = (block->base - begin_) / kChunk;
  const size_t count = round_up(block->mapped, kChunk) / kChunk;
  for (size_t i = 0; i < count; ++i) chunks_[first + i] = block.get();
  blocks_.emplace(block->base, block);
  lock.unlock();
  if (auto* watching = observer()) watching->allocated(*block);
  return block;
}

std::shared_ptr<Block> AddressSpace::create(Place place, size_t size, size_t page, int32_t device) {
  std::call_once(reserved_, [this] { reserve(); });
  const size_t mapped = round_up(size, page);
  const int fd = place == Place::Pinned ? -1 : new_memory(mapped);
  uintptr_t base = 0;
  try {
    base = take(range(place), round_up(mapped, kChunk) + kChunk);
    map(place, base, mapped, fd, 0);
    auto block = std::make_shared<Block>(*this, place, base, size, mapped, device, fd);
    block->page = page;
    return publish(std::move(block));
  } catch (const Error&) {
    if (base != 0) give_back(place, base, mapped);
    if (fd >= 0) close(fd);
    throw;
  }
}

std::shared_ptr<Block> AddressSpace::adopt(int fd, uint64_t offset, size_t size, int32_t device,
                                           std::shared_ptr<Import> import, bool peer_enabled) {
  std::call_once(reserved_, [this] { reserve(); });
  const size_t mapped = round_up(size, static_cast<size_t>(sysconf(_SC_PAGESIZE)));
  uintptr_t base = 0;
  try {
    base = take(range(Place::Imported), round_up(mapped, kChunk) + kChunk);
    map(Place::Imported, base, mapped, fd, offset);
    auto block = std::make_shared<Block>(*this, Place::Imported, base, size, mapped, device, fd);
    block->offset = offset;
    block->import = std::move(import);
    block->peer_enabled = peer_enabled;
    return publish(std::move(block));
  } catch (const Error&) {
    if (base != 0) give_back(Place::Imported, base, mapped);
    close(fd);
    throw;
  }
}

uintptr_t AddressSpace::reserve_range(size_t size) {
  std::call_once(reserved_, [this] { reserve(); });
  return take(range(Place::Device), round_up(size, kChunk) + kChunk);
}

std::shared_ptr<Block> AddressSpace::map_physical(uintptr_t base, std::shared_ptr<Physical> physical) {
  const size_t size = physical->size;
  map(Place::Device, base, size, physical->fd, 0);
  auto block = std::make_shared<Block>(*this, Place::Device, base, size, size, physical->device.id, -1);
  block->import = physical->import;
  block->peer_enabled = true;
  block->page = kChunk;
  block->physical = std::move(physical);
  return publish(std::move(block));
}

std::shared_ptr<Block> AddressSpace::release(Place place, uintptr_t base) {
  std::unique_lock lock(blocks_mutex_);
  auto it = blocks_.find(base);
  if (it == blocks_.end() || it->second->place != place) return nullptr;
  auto block = std::move(it->second);
  blocks_.erase(it);
  block->freed.store(true);
  freed_.push_back({block->base, block->size, block->made, Stack::here()});
  if (freed_.size() > kFreedKept) freed_.pop_front();
  const size_t first = (block->base - begin_) / kChunk;
  const size_t count = round_up(block->mapped, kChunk) / kChunk;
  for (size_t i = 0; i < count; ++i) chunks_[first + i] = nullptr;
  lock.unlock();
  for (const auto& device : Runtime::get().devices) device->error.forget(block->base, block->mapped);
  if (auto* watching = observer()) watching->freed(*block);
  return block;
}

std::shared_ptr<Block> AddressSpace::find(uintptr_t address) const {
  const uintptr_t begin = begin_.load(std::memory_order_acquire);
  if (begin == 0 || address < begin || address >= end_) return nullptr;
  std::shared_lock lock(blocks_mutex_);
  Block* block = chunks_[(address - begin) / kChunk];
  if (block == nullptr || address - block->base >= block->size) return nullptr;
  return block->shared_from_this();
}

std::vector<std::shared_ptr<Block>> AddressSpace::all() const {
  std::shared_lock lock(blocks_mutex_);
  std::vector<std::shared_ptr<Block>> found;
  for (const auto& [_, block] : blocks_) found.push_back(block);
  return found;
}

std::string AddressSpace::story_of(uintptr_t address) const {
  if (const auto block = find(address)) {
    std::string story = text("it lies in the live allocation [0x%zx, +%zu)", block->base, block->size);
    if (Stack::is_shown() && block->made != nullptr) story += "; allocated at\n" + block->made->text("  ");
    return story;
  }
  std::shared_lock lock(blocks_mutex_);
  for (auto it = freed_.rbegin(); it != freed_.rend(); ++it) {
    if (address < it->base || address - it->base >= it->size) continue;
    std::string story = text("the allocation [0x%zx, +%zu) was freed before", it->base, it->size);
    if (!Stack::is_shown()) return story;
    if (it->made != nullptr) story += "; allocated at\n" + it->made->text("  ");
    if (it->freed != nullptr) story += "freed at\n" + it->freed->text("  ");
    return story;
  }
  return "no allocation is known there";
}

bool AddressSpace::in_range(Place place, uintptr_t address) const {
  if (begin_.load(std::memory_order_acquire) == 0) return false;
  return address >= range(place).begin && address < range(place).end;
}

size_t AddressSpace::live_blocks() const {
  std::shared_lock lock(blocks_mutex_);
  return blocks_.size();
}

Block::Block(AddressSpace& space, Place place, uintptr_t base, size_t size, size_t mapped, int32_t device,
             int fd)
    : place(place), base(base), size(size), mapped(mapped), device(device), fd(fd), space_(space) {}

Block::~Block() {
  if (physical != nullptr) {
    space_.unmap(place, base, mapped);  // the range stays reserved
  } else {
    space_.give_back(place, base, mapped);
  }
  WaitHints::unmap(wait_hints_.load());
  if (fd >= 0) close(fd);
}

WaitHints* Block::wait_hints() {
  WaitHints* known = wait_hints_.load(std::memory_order_acquire);
  if (known != nullptr) [[likely]]
    return known;
  WaitHints* made = WaitHints::map(physical != nullptr ? physical->fd : fd);
  if (made == nullptr || wait_hints_.compare_exchange_strong(known, made)) return made;
  WaitHints::unmap(made);  // another thread was faster
  return known;
}

uint64_t Block::file() const {
  const int of = physical != nullptr ? physical->fd : fd;
  if (of < 0) return 0;
  uint64_t known = file_.load(std::memory_order_relaxed);
  if (known != 0) return known;
  known = AddressSpace::file_of(of);
  file_.store(known, std::memory_order_relaxed);
  return known;
}

std::byte* Block::host(uintptr_t address) const {
  return place == Place::Pinned ? reinterpret_cast<std::byte*>(address) : space_.alias(address);
}

}  // namespace emu
