#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "emulator/config.h"
#include "emulator/copy.h"
#include "emulator/entry.h"
#include "emulator/fault_block.h"

namespace emu {

class Stream;
class Task;

// Misbehaviour on demand: what a test asked for, in a block that other processes can write, too. Each place
// that may misbehave asks is_armed() first, which is one relaxed load, and this class only after that.
class Faults {
 public:
  // What a call, a task or a copy is, as far as rules tell them apart.
  struct Subject {
    bool by_memory = false;  // only rules that name an address or a size
    bool by_name = false;    // only rules that name what they mean
    const char* name = "";
    const Stream* stream = nullptr;
    int32_t device = -1;
    int32_t direction = -1;
    uintptr_t dst = 0;
    uintptr_t src = 0;
    size_t bytes = 0;
    size_t dst_span = 0;
    size_t src_span = 0;
  };
  static Subject subject_of(const Stream& stream, const char* name);

  explicit Faults(const Config& config);

  // By the writers: adds the rule, or replaces the one that differs in numbers only. Throws 207005 when there
  // is no place.
  void arm(const FaultRule& rule);
  void disarm(const std::function<bool(const FaultRule&)>& matches);
  // Arms what the text says; throws Error 100000 naming what is wrong, and then arms nothing of it.
  void arm(const std::string& text);

  // The first rule of this kind that takes effect now. Counts the match.
  std::optional<FiredRule> fires(Fault kind, const Subject& subject);
  bool is_still_armed(const FiredRule& fired) const;
  // For rules that hold until they are disarmed: the sum, the smallest one, whether there is any.
  uint64_t sum(Fault kind, const Subject& subject) const;
  uint64_t least(Fault kind, const Subject& subject) const;  // 0: none
  std::optional<FaultRule> standing(Fault kind, const Subject& subject) const;

  // Resources. Throws when no more than `count` are left.
  void take(const char* resource, uint64_t count, aclError code);
  void give_back(const char* resource, uint64_t count);

  [[noreturn]] void refuse_bad_text() const;
  // Who freezes the host waits for calls to end, as they hold locks, and none may begin meanwhile.
  void hold_host() const;
  // Starts a call: throws the code that it is to fail with, notes what makes it late.
  void begin_call(Entry entry, Thread& self);
  // The same for rules that tell calls by address or size. `second` is 0 where there is one address only.
  void begin_call(Entry entry, uintptr_t first, uintptr_t second, size_t bytes, Thread& self);

  // At the end of a call that a rule makes late.
  void hold_up(const FiredRule& late) const;

  // Before a task of a stream's queue: delays, freezes, and the code of a task other than a copy.
  aclError before_task(Stream& stream, const Task& task);
  void hold_while_frozen(Stream& stream) const;
  // A copy that something is armed for; `stream` is null for one that the caller waits for.
  aclError move(const Copy& copy, const Device& device, Stream* stream, std::string& why);

  aclError lost(int32_t device) const;  // ACL_SUCCESS: it is there
  // A call answered with this code: whether it told of the loss.
  void note_answer(Device& device, aclError code) const;
  // Throws the code of a lost device once the program knows.
  void refuse_if_lost(const Device& device) const;
  void find_again(int32_t device);

  bool counts_as_dead(int32_t pid) const;
  int32_t own_pid() const;  // as white lists know it
  size_t export_page(size_t otherwise) const;

  // After fork(): the child gets a block of its own, with a copy of its parent's rules.
  void after_fork();

  std::atomic<uint32_t>& births() { return block_->births; }

 private:
  class Writing;

  void make_block();
  std::optional<FaultRule> read(uint32_t slot, uint64_t* generation = nullptr) const;
  bool is_frozen(int32_t device, const Stream* stream) const;
  template <class Body>
  void for_each(Fault kind, const Subject& subject, Body&& body) const;
  bool count(FaultSlot& slot, const FaultRule& rule);
  void wait_while(const std::function<bool()>& holds, Stream* stream) const;

  FaultBlock* block_ = nullptr;
  int fd_ = -1;
  std::string problem_;  // of the environment variable
};

// The text of the environment variable as rules. Throws Error 100000.
std::vector<FaultRule> parse_faults(const std::string& text);

// Whether calls of this entry point can be told apart by address and size.
bool touches_memory(Entry entry);

constexpr uint32_t kCallFaults = bits(Fault::FailCall, Fault::LateCall);

void check_memory_faults(Entry entry, uintptr_t first, uintptr_t second, size_t bytes);

// For the bodies of entry points that name memory.
inline void on_memory(Entry entry, const void* first, const void* second, size_t bytes) {
  if (is_armed(kCallFaults)) [[unlikely]] {
    check_memory_faults(entry, reinterpret_cast<uintptr_t>(first), reinterpret_cast<uintptr_t>(second),
                        bytes);
  }
}

constexpr uint32_t kTaskFaults = bits(Fault::TaskDelay, Fault::Freeze, Fault::FailTask, Fault::Interleave);
constexpr uint32_t kCopyFaults = bits(Fault::FailTask, Fault::Bandwidth, Fault::Split, Fault::HoldCopy,
                                      Fault::FlipByte, Fault::Freeze, Fault::Interleave);

}  // namespace emu
