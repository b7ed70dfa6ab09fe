// Ranges that were registered one by one. HIXL takes a piece only inside of one of them, and pieces that lie
// side by side were made one by the planner, whatever they were registered as.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <vector>

#include "hixl_shim/shim.h"
#include "transport/engine/engine.h"

namespace datadist::hixl {

class Regions {
 public:
  void add(uint64_t address, uint64_t bytes) { regions_[address] = bytes; }
  void remove(uint64_t address) { regions_.erase(address); }
  // How many bytes from `address` on lie in one region; 0: none do.
  uint64_t bytes_from(uint64_t address) const;

 private:
  std::map<uint64_t, uint64_t> regions_;  // address -> bytes
};

// The same bytes, no piece over the end of a region at either end. Throws LLM_PARAM_INVALID where a piece
// leaves what was registered.
std::vector<DatadistHixlPiece> cut(const std::vector<engine::Piece>& pieces, const Regions& here,
                                   const Regions& there);

}  // namespace datadist::hixl
