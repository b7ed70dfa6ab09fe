#include "emulator/busy_times.h"

#include <iterator>

namespace emu {

uint64_t BusyTimes::take(uint64_t earliest, uint64_t length) {
  uint64_t begin = earliest;
  auto next = taken_.upper_bound(begin);
  if (next != taken_.begin() && std::prev(next)->second > begin) begin = std::prev(next)->second;
  while (next != taken_.end() && next->first < begin + length) {
    begin = next->second;
    ++next;
  }
  uint64_t end = begin + length;
  if (length == 0) return begin;
  uint64_t from = begin;
  if (next != taken_.end() && next->first == end) {
    end = next->second;
    next = taken_.erase(next);
  }
  if (next != taken_.begin() && std::prev(next)->second == from) {
    from = std::prev(next)->first;
    taken_.erase(std::prev(next));
  }
  taken_[from] = end;
  if (taken_.size() > kKept) taken_.erase(taken_.begin());
  return begin;
}

}  // namespace emu
