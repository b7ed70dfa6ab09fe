#pragma once

#include <atomic>
#include <cstdint>

namespace emu {

// What may be asked for. The numbers are part of the block's layout.
enum class Fault : uint32_t {
  None,
  FailCall,      // the call returns `code` and does nothing
  LateCall,      // the call returns `amount` ns late, or when this is disarmed
  FailTask,      // the task ends with `code` and does nothing
  TaskDelay,     // each task takes `amount` ns longer
  Bandwidth,     // copies move `amount` bytes per second
  Split,         // copies move in pieces of `amount` bytes
  HoldCopy,      // the copy stops after `amount` bytes, until this is disarmed
  FlipByte,      // the byte at offset `amount` arrives with all its bits turned over
  Overtake,      // the flag behind a copy is written first, and the bytes follow `amount` ns later
  Freeze,        // the stream, or all of the device's, go on with nothing
  Lose,          // the device is lost with `code`
  Limit,         // of the resource `function`, `amount` are left
  DeadExporter,  // process `amount` (0: each) counts as gone
  CountAsPid,    // white lists know this process as `amount`
  ExportPage,    // exports must fit pages of `amount` bytes
  SpoilCapture,  // a capture is invalid after its nth task
  BadText,       // the environment variable could not be read: no call works
  HoldHost,      // host threads begin no call while process `amount`, which is to stop them, lives
  Interleave,    // streams stop between tasks and in large copies as the seed `amount` has it
};

constexpr uint32_t bit(Fault fault) { return 1U << static_cast<uint32_t>(fault); }
template <class... Faults>
constexpr uint32_t bits(Faults... faults) {
  return (bit(faults) | ...);
}

// When, and what. Zero, or -1 where zero means something, stands for "any".
struct FaultRule {
  uint64_t kind = 0;
  char function[64] = {};
  uint64_t stream = 0;
  int64_t device = -1;
  int64_t direction = -1;
  uint64_t address = 0;
  uint64_t bytes = 0;
  uint64_t nth = 1;    // the first match that counts
  uint64_t times = 1;  // how many do from then on; 0: all
  int64_t code = 0;
  uint64_t amount = 0;
};

// A rule that took effect, and where it is kept.
struct FiredRule {
  FaultRule rule;
  uint32_t slot = 0;
  uint64_t generation = 0;
};

// A place for a rule. Writers change it under the block's lock and leave `generation` odd while it is armed;
// readers take no lock and read again when the generation moved under them.
struct FaultSlot {
  static constexpr uint32_t kWords = sizeof(FaultRule) / sizeof(uint64_t);

  std::atomic<uint64_t> generation;
  std::atomic<uint64_t> hits;   // matches so far; of a limit: how many were taken
  std::atomic<uint64_t> fired;  // how often it took effect
  std::atomic<uint64_t> rule[kWords];
};

// The faults of one process, in a memfd that is found through /proc/<pid>/fd: any process of the same user
// may open it and change it (torch_llm_datadist.emulator.faults does), and it ends with the process. The lock
// of writers is flock() on the file, which a killed writer gives back. Changes of this layout change
// kVersion.
struct FaultBlock {
  static constexpr const char* kName = "torch_llm_datadist_faults_";  // and the pid: a fork inherits the file
  static constexpr uint64_t kMagic = 0x5354'4c55'4146'504eULL;        // "NPFAULTS"
  static constexpr uint32_t kVersion = 1;
  static constexpr uint32_t kSlots = 64;
  static constexpr uint32_t kNameBytes = 16 << 10;

  uint64_t magic;
  uint32_t version;
  uint32_t slot_count;
  int32_t pid;
  std::atomic<uint32_t> armed;   // bit n: there may be an armed rule of that kind
  std::atomic<uint32_t> births;  // device threads that do not carry their name yet
  uint32_t name_bytes;
  FaultSlot slots[kSlots];
  char names[kNameBytes];  // entry points, a line each; those that calls can be told apart by end in " *"
};

static_assert(sizeof(FaultRule) == 144 && sizeof(FaultSlot) == 168);
static_assert(std::atomic<uint64_t>::is_always_lock_free && std::atomic<uint32_t>::is_always_lock_free);

// The word that the hot path looks at: FaultBlock::armed, or a zero until there is a block.
extern const std::atomic<uint32_t>* armed_faults;

inline bool is_armed(uint32_t faults) {
  return (armed_faults->load(std::memory_order_relaxed) & faults) != 0;
}

}  // namespace emu
