#pragma once

#include <array>
#include <atomic>
#include <cstdint>

namespace emu {

// What processes that share events see of each other. A record takes a slot when it is called and names it as
// the event's latest; a wait looks the latest up when it is called. So who waits for what is settled on the
// host, and a wait before any record is for nothing. All changes are single compare-and-swaps: a process that
// is killed in between leaves at worst one slot taken. What else it leaves is taken back by who finds none.
//
//   state               reached by                            used again
//   free                -                                     at once
//   pending             a record                              when its recorder is dead and no event names it
//   pending, retired    the event names a later record        when its recorder is dead
//   done                the stream got there                  once the event moves on
//   lost                the stream was stopped before         once the event moves on
struct IpcEventPage {
  static constexpr uint32_t kSlots = 8192;
  static constexpr uint32_t kEvents = 8192;

  // Slot words: state in the low bits, then whether the event has moved on, then a generation.
  enum : uint32_t { kFree = 0, kPending = 1, kDone = 2, kLost = 3, kState = 3, kRetired = 4, kOne = 8 };
  static constexpr uint32_t generation_of(uint32_t word) { return word / kOne; }
  static constexpr uint32_t state_of(uint32_t word) { return word & kState; }

  // Gives a slot back whose word was `seen` at some time before; false when it is pending no more.
  static bool free_pending(std::atomic<uint32_t>& slot, uint32_t seen) {
    // Retired since by another process, it still has no recorder: later looks would pass it by.
    const uint32_t generation = generation_of(seen);
    while (generation_of(seen) == generation && state_of(seen) == kPending) {
      if (slot.compare_exchange_weak(seen, seen & ~(kState | kRetired))) return true;
    }
    return false;
  }

  std::array<std::atomic<uint32_t>, kSlots> slots;
  // The process whose stream will settle the slot, told apart by its start; 0: not known yet, or settled.
  std::array<std::atomic<uint64_t>, kSlots> started;
  std::array<std::atomic<int32_t>, kSlots> recorders;
  std::array<std::atomic<uint32_t>, kSlots> lost;     // the last generation + 1 that was lost there
  std::array<std::atomic<uint64_t>, kEvents> latest;  // generation << 32 | slot + 1; 0: never recorded
};

}  // namespace emu
