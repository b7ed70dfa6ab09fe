// aclrtValueWrite and aclrtValueWait: 64-bit words in device memory, of this process or an imported one.

#include "emulator/value.h"

#include <atomic>
#include <bit>

#include "emulator/context.h"
#include "emulator/copy.h"
#include "emulator/device.h"
#include "emulator/emu.h"
#include "emulator/entry.h"
#include "emulator/faults.h"
#include "emulator/ipc_memory.h"
#include "emulator/lazy.h"
#include "emulator/runtime.h"
#include "emulator/stream.h"
#include "emulator/wait_hints.h"

namespace emu {

void store_word(Block& block, uintptr_t address, uint64_t value) {
  auto* word = reinterpret_cast<uint64_t*>(block.host(address));
  std::atomic_ref(*word).store(value, std::memory_order_release);
  std::atomic_thread_fence(std::memory_order_seq_cst);
  WaitHints* hints = block.wait_hints();
  if (hints != nullptr && hints->waiters(block.file_offset(address)).load() == 0) return;
  Runtime::get().words_woken.fetch_add(1, std::memory_order_relaxed);
  // The futex word is the half with the low bits: it is the one that counting changes.
  futex_wake_all(reinterpret_cast<std::atomic<uint32_t>*>(word));
}

bool value_holds(uint64_t current, uint64_t value, uint32_t mode) {
  switch (mode) {
    case ACL_STREAM_WAIT_VALUE_GEQ:
      return static_cast<int64_t>(current - value) >= 0;
    case ACL_STREAM_WAIT_VALUE_EQ:
      return current == value;
    case ACL_STREAM_WAIT_VALUE_AND:
      return (current & value) != 0;
    default:
      return ~(current | value) != 0;
  }
}

namespace {

static_assert(std::endian::native == std::endian::little, "the futex word is the low half");

// Looks before the wait becomes a sleep: a flag that is about to be written costs no system call.
constexpr int kLooks = 300;
constexpr auto kFirstNap = std::chrono::milliseconds(1);
constexpr auto kLongNap = std::chrono::milliseconds(4);
constexpr int kNapsUntilLong = 50;

void check(void* pointer, uint32_t flag, uint32_t most) {
  not_null(pointer, "devAddr");
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  if (address % 8 != 0) fail(ACL_ERROR_RT_PARAM_INVALID, "devAddr %p is not aligned to 8 bytes", pointer);
  if (flag > most) fail(ACL_ERROR_RT_PARAM_INVALID, "flag %u; the most is %u", flag, most);
  const auto block = Runtime::get().memory.find(address);
  if (block == nullptr || block->place == Place::Pinned || !block->contains(address, 8)) {
    fail(ACL_ERROR_RT_PARAM_INVALID, "devAddr %p is not live device memory", pointer);
  }
  if (block->import != nullptr && !Runtime::get().values_reach_peers.load()) {
    fail(ACL_ERROR_RT_PARAM_INVALID, "devAddr %p was imported from another process", pointer);
  }
}

class ValueWrite final : public Task {
 public:
  ValueWrite(uintptr_t address, uint64_t value) : Task("aclrtValueWrite"), address_(address), value_(value) {}

  aclError run(Stream& stream) override {
    Pin word;
    std::string why;
    const aclError code = pin(address_, 8, stream.context().device, word, why);
    if (code != ACL_SUCCESS) {
      stream.explain(std::move(why));
      return code;
    }
    store_word(*word.block, address_, value_);
    return ACL_SUCCESS;
  }
  void describe(TaskFacts& facts) const override {
    facts.name = what;
    facts.kind = TaskKind::ValueWrite;
    facts.word = address_;
    facts.value = value_;
  }
  void read_parameters(aclmdlRITaskParams& out) const override {
    out.type = ACL_MODEL_RI_TASK_VALUE_WRITE;
    out.valueWriteTaskParams = {reinterpret_cast<void*>(address_), value_};
  }
  std::shared_ptr<Task> with_parameters(const aclmdlRITaskParams& given) const override {
    const auto& [address, value] = given.valueWriteTaskParams;
    check(address, 0, 0);
    return std::make_shared<ValueWrite>(reinterpret_cast<uintptr_t>(address), value);
  }
  bool writes_flag() const override { return true; }
  bool is_brief() const override { return true; }

 private:
  const uintptr_t address_;
  const uint64_t value_;
};

class ValueWait final : public Task {
 public:
  ValueWait(uintptr_t address, uint64_t value, uint32_t mode)
      : Task("aclrtValueWait"), address_(address), value_(value), mode_(mode) {}

  aclError run(Stream& stream) override {
    Pin word;
    std::string why;
    aclError code = pin(address_, 8, stream.context().device, word, why, Touch::Read);
    if (code == ACL_SUCCESS) code = wait(stream, word, why);
    if (code != ACL_SUCCESS) stream.explain(std::move(why));
    return code;
  }
  void describe(TaskFacts& facts) const override {
    facts.name = what;
    facts.kind = TaskKind::ValueWait;
    facts.word = address_;
    facts.value = value_;
    facts.mode = mode_;
  }
  void read_parameters(aclmdlRITaskParams& out) const override {
    out.type = ACL_MODEL_RI_TASK_VALUE_WAIT;
    out.valueWaitTaskParams = {reinterpret_cast<void*>(address_), value_, mode_};
  }
  std::shared_ptr<Task> with_parameters(const aclmdlRITaskParams& given) const override {
    const auto& [address, value, mode] = given.valueWaitTaskParams;
    check(address, mode, ACL_STREAM_WAIT_VALUE_NOR);
    return std::make_shared<ValueWait>(reinterpret_cast<uintptr_t>(address), value, mode);
  }

 private:
  aclError wait(Stream& stream, const Pin& word, std::string& why) const {
    const std::atomic_ref value(*reinterpret_cast<uint64_t*>(word.host));
    for (int i = 0; i < kLooks; ++i) {
      if (value_holds(value.load(std::memory_order_acquire), value_, mode_)) return ACL_SUCCESS;
      cpu_relax();
    }
    const WaitHint waiting(word.block->wait_hints(), word.block->file_offset(address_));
    for (int naps = 0; !stream.stopping(); ++naps) {
      const uint64_t seen = value.load(std::memory_order_acquire);
      if (value_holds(seen, value_, mode_)) return ACL_SUCCESS;
      if (const aclError code = check_still_there(stream, *word.block, why); code != ACL_SUCCESS) return code;
      const bool is_queued = lazy::is_on() && lazy::need_writers_of(address_, stream);
      // Value writes and 8-byte copies wake us, also from another process; the nap is for what else may
      // write.
      stream.park(reinterpret_cast<std::atomic<uint32_t>*>(word.host), static_cast<uint32_t>(seen),
                  naps < kNapsUntilLong ? kFirstNap : kLongNap,
                  is_queued ? lazy::kGraceForQueued : lazy::kGrace);
    }
    return ACL_ERROR_RT_STREAM_ABORT;
  }

  aclError check_still_there(const Stream& stream, const Block& block, std::string& why) const {
    if (block.freed.load()) {
      why = text("0x%zx was freed while the stream waited for it", address_);
      return ACL_ERROR_RT_SYS_DMA;
    }
    if (block.import == nullptr) return ACL_SUCCESS;
    return block.import->check(stream.context().device, block.peer_enabled, why);
  }

  const uintptr_t address_;
  const uint64_t value_;
  const uint32_t mode_;
};

}  // namespace
}  // namespace emu

using namespace emu;

void emuLetValuesReachPeers(int allowed) { Runtime::get().values_reach_peers.store(allowed != 0); }

aclError aclrtValueWrite(void* devAddr, uint64_t value, uint32_t flag, aclrtStream stream) {
  return ENTER(aclrtValueWrite, {
    on_memory(Entry::aclrtValueWrite, devAddr, nullptr, sizeof(uint64_t));
    auto on = Thread::self().context->stream(stream);
    check(devAddr, flag, 0);
    on->submit(std::make_shared<ValueWrite>(reinterpret_cast<uintptr_t>(devAddr), value));
    return ACL_SUCCESS;
  });
}

aclError aclrtValueWait(void* devAddr, uint64_t value, uint32_t flag, aclrtStream stream) {
  return ENTER(aclrtValueWait, {
    on_memory(Entry::aclrtValueWait, devAddr, nullptr, sizeof(uint64_t));
    auto on = Thread::self().context->stream(stream);
    check(devAddr, flag, ACL_STREAM_WAIT_VALUE_NOR);
    on->submit(std::make_shared<ValueWait>(reinterpret_cast<uintptr_t>(devAddr), value, flag));
    return ACL_SUCCESS;
  });
}
