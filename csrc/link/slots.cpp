#include "link/slots.h"

#include "error.h"
#include "messages/messages.h"

namespace datadist {

SenderSlots::SenderSlots(size_t max_in_flight) : slots_(max_in_flight) {
  for (size_t i = max_in_flight; i-- > 0;) free_.push_back(static_cast<uint32_t>(i));
}

SlotUse SenderSlots::take(const char* asked, const std::string& peer) {
  std::lock_guard lock(mutex_);
  if (free_.empty())
    refuse(Message::all_slots_in_flight, {{"asked", asked}, {"value", slots_.size()}, {"peer", peer}});
  const uint32_t index = free_.back();
  free_.pop_back();
  Slot& slot = slots_[index];
  ++slot.epoch;
  slot.is_drained = slot.is_retired = false;
  return {index, slot.epoch};
}

bool SenderSlots::drained(SlotUse use) {
  std::lock_guard lock(mutex_);
  if (use.slot >= slots_.size()) return false;
  Slot& slot = slots_[use.slot];
  if (slot.epoch != use.epoch || slot.is_drained) return false;
  slot.is_drained = true;
  return free_if_done(use.slot);
}

bool SenderSlots::retired(SlotUse use) {
  std::lock_guard lock(mutex_);
  if (use.slot >= slots_.size()) return false;
  Slot& slot = slots_[use.slot];
  if (slot.epoch != use.epoch || slot.is_retired) return false;
  slot.is_retired = true;
  return free_if_done(use.slot);
}

bool SenderSlots::free_if_done(uint32_t index) {
  if (!slots_[index].is_drained || !slots_[index].is_retired) return false;
  free_.push_back(index);
  return true;
}

}  // namespace datadist
