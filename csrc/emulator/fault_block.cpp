// The block of faults: how it is made, written and read.

#include "emulator/fault_block.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "emulator/error.h"
#include "emulator/faults.h"

namespace emu {
namespace {

const std::atomic<uint32_t> nothing{0};

bool same_filters(const FaultRule& one, const FaultRule& other) {
  return one.kind == other.kind && std::strncmp(one.function, other.function, sizeof one.function) == 0 &&
         one.stream == other.stream && one.device == other.device && one.direction == other.direction &&
         one.address == other.address && one.bytes == other.bytes;
}

// Kinds that count matches are over after the last of them.
bool is_used_up(const FaultRule& rule, uint64_t hits) {
  switch (static_cast<Fault>(rule.kind)) {
    case Fault::FailCall:
    case Fault::LateCall:
    case Fault::FailTask:
    case Fault::FlipByte:
    case Fault::Overtake:
    case Fault::SpoilCapture:
      return rule.times != 0 && hits + 1 >= rule.nth + rule.times;
    default:
      return false;
  }
}

void list_entries(FaultBlock& block) {
  size_t at = 0;
  for (size_t i = 0; i < static_cast<size_t>(Entry::kCount); ++i) {
    const auto entry = static_cast<Entry>(i);
    at += static_cast<size_t>(std::snprintf(block.names + at, sizeof block.names - at, "%s%s\n",
                                            name_of(entry), touches_memory(entry) ? " *" : ""));
    if (at >= sizeof block.names) std::abort();  // kNameBytes is too small: found by the first test
  }
  block.name_bytes = static_cast<uint32_t>(at);
}

}  // namespace

const std::atomic<uint32_t>* armed_faults = &nothing;

// Holds the writers' lock. A lock belongs to an open file, so that each writer opens the block anew.
class Faults::Writing {
 public:
  explicit Writing(Faults& faults) : block_(*faults.block_) {
    char path[40];
    std::snprintf(path, sizeof path, "/proc/self/fd/%d", faults.fd_);
    fd_ = open(path, O_RDWR | O_CLOEXEC);
    while (fd_ >= 0 && flock(fd_, LOCK_EX) != 0 && errno == EINTR) {
    }
    if (fd_ < 0)
      fail(ACL_ERROR_RT_RESOURCE_ALLOC_FAIL, "the faults cannot be opened: %s", std::strerror(errno));
  }
  ~Writing() { close(fd_); }
  Writing(const Writing&) = delete;
  Writing& operator=(const Writing&) = delete;

  void write(uint32_t index, const FaultRule& rule) {
    clear(index);
    FaultSlot& slot = block_.slots[index];
    uint64_t words[FaultSlot::kWords];
    std::memcpy(words, &rule, sizeof rule);
    for (uint32_t i = 0; i < FaultSlot::kWords; ++i) slot.rule[i].store(words[i], std::memory_order_relaxed);
    slot.hits.store(0);
    slot.fired.store(0);
    slot.generation.fetch_add(1, std::memory_order_release);
  }
  void clear(uint32_t index) {
    auto& generation = block_.slots[index].generation;
    if ((generation.load() & 1) == 0) return;
    generation.fetch_add(1);
    std::atomic_thread_fence(std::memory_order_release);
  }
  void publish(uint32_t armed) { block_.armed.store(armed); }

 private:
  FaultBlock& block_;
  int fd_ = -1;
};

Faults::Faults(const Config& config) {
  make_block();
  FaultRule rule;
  rule.kind = static_cast<uint64_t>(Fault::TaskDelay);
  rule.amount = config.task_delay_us * 1000;
  if (rule.amount != 0) arm(rule);
  rule.kind = static_cast<uint64_t>(Fault::Bandwidth);
  for (rule.direction = 0; rule.direction < 4; ++rule.direction) {
    rule.amount = config.bandwidth[rule.direction];
    if (rule.amount != 0) arm(rule);
  }
  // Where the kernel lets only parents trace, faults.of(pid).freeze_host() is not only for them.
  prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY, 0, 0, 0);
  const char* given = std::getenv("TORCH_LLM_DATADIST_EMULATE_FAULTS");
  if (given == nullptr) return;
  try {
    arm(std::string(given));
  } catch (const Error& error) {
    problem_ = "TORCH_LLM_DATADIST_EMULATE_FAULTS: " + error.message;
    std::fprintf(stderr, "emulated Ascend runtime: %s; every call fails until it is mended\n",
                 problem_.c_str());
    block_->armed.store(bit(Fault::BadText));
  }
}

void Faults::make_block() {
  const int fd = memfd_create(text("%s%d", FaultBlock::kName, getpid()).c_str(), MFD_CLOEXEC);
  if (fd < 0 || ftruncate(fd, sizeof(FaultBlock)) != 0) {
    fail(ACL_ERROR_RT_RESOURCE_ALLOC_FAIL, "memfd for faults: %s", std::strerror(errno));
  }
  void* at = mmap(nullptr, sizeof(FaultBlock), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (at == MAP_FAILED) {
    close(fd);
    fail(ACL_ERROR_RT_RESOURCE_ALLOC_FAIL, "mmap of the faults: %s", std::strerror(errno));
  }
  auto* block = static_cast<FaultBlock*>(at);
  list_entries(*block);
  block->version = FaultBlock::kVersion;
  block->slot_count = FaultBlock::kSlots;
  block->pid = getpid();
  block->magic = FaultBlock::kMagic;
  fd_ = fd;
  block_ = block;
  armed_faults = &block->armed;
}

void Faults::after_fork() {
  FaultBlock* parents = block_;
  close(fd_);
  make_block();
  for (uint32_t i = 0; i < FaultBlock::kSlots; ++i) {
    FaultSlot& slot = block_->slots[i];
    const FaultSlot& from = parents->slots[i];
    for (uint32_t w = 0; w < FaultSlot::kWords; ++w) slot.rule[w].store(from.rule[w].load());
    slot.hits.store(from.hits.load());
    slot.fired.store(from.fired.load());
    slot.generation.store(from.generation.load());
  }
  block_->armed.store(parents->armed.load());
  munmap(parents, sizeof(FaultBlock));
}

std::optional<FaultRule> Faults::read(uint32_t index, uint64_t* generation) const {
  const FaultSlot& slot = block_->slots[index];
  for (;;) {
    const uint64_t seen = slot.generation.load(std::memory_order_acquire);
    if ((seen & 1) == 0) return std::nullopt;
    uint64_t words[FaultSlot::kWords];
    for (uint32_t i = 0; i < FaultSlot::kWords; ++i) words[i] = slot.rule[i].load(std::memory_order_relaxed);
    std::atomic_thread_fence(std::memory_order_acquire);
    if (slot.generation.load(std::memory_order_relaxed) != seen) continue;
    FaultRule rule;
    std::memcpy(static_cast<void*>(&rule), words, sizeof rule);
    if (generation != nullptr) *generation = seen;
    return rule;
  }
}

void Faults::arm(const FaultRule& rule) {
  Writing writing(*this);
  uint32_t place = FaultBlock::kSlots;
  uint32_t used_up = FaultBlock::kSlots;
  for (uint32_t i = 0; i < FaultBlock::kSlots; ++i) {
    const auto there = read(i);
    if (!there) {
      if (place == FaultBlock::kSlots) place = i;
    } else if (same_filters(*there, rule)) {
      place = i;
      break;
    } else if (is_used_up(*there, block_->slots[i].hits.load())) {
      used_up = i;
    }
  }
  if (place == FaultBlock::kSlots) place = used_up;
  if (place == FaultBlock::kSlots) {
    fail(ACL_ERROR_RT_RESOURCE_ALLOC_FAIL, "%u faults are armed, and that is the most", FaultBlock::kSlots);
  }
  writing.write(place, rule);
  block_->armed.fetch_or(1U << rule.kind);
}

void Faults::disarm(const std::function<bool(const FaultRule&)>& matches) {
  Writing writing(*this);
  uint32_t armed = block_->armed.load() & bit(Fault::BadText);
  for (uint32_t i = 0; i < FaultBlock::kSlots; ++i) {
    const auto rule = read(i);
    if (!rule) continue;
    if (matches(*rule)) {
      writing.clear(i);
    } else if (!is_used_up(*rule, block_->slots[i].hits.load())) {
      armed |= 1U << rule->kind;
    }
  }
  writing.publish(armed);
}

void Faults::arm(const std::string& text) {
  for (const FaultRule& rule : parse_faults(text)) arm(rule);
}

}  // namespace emu
