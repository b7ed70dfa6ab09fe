// The sender's side of a link's slots: who may use one, and when it may be used again.
#pragma once

#include <array>
#include <cstdint>
#include <mutex>
#include <vector>

#include "link/page.h"

namespace datadist {

struct SlotUse {
  uint32_t slot;
  uint32_t epoch;
};

// A slot is issued again only when its last flag write completed (`drained`) and the receiver retired it
// (`retired`).
class SenderSlots {
 public:
  explicit SenderSlots(size_t max_in_flight);
  // LLM_LINK_BUSY when all are in flight.
  SlotUse take(const char* asked, const std::string& peer);
  // True when that made it free.
  bool drained(SlotUse use);
  bool retired(SlotUse use);

 private:
  struct Slot {
    uint32_t epoch = 0;
    bool is_drained = true;
    bool is_retired = true;
  };
  bool free_if_done(uint32_t index);

  mutable std::mutex mutex_;
  std::vector<Slot> slots_;
  std::vector<uint32_t> free_;
};

}  // namespace datadist
