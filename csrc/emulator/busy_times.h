#pragma once

#include <cstddef>
#include <cstdint>
#include <map>

namespace emu {

// When one link or memory is in use. Work is put into the first gap that is long enough, since tasks are not
// met in the order of their simulated times.
class BusyTimes {
 public:
  // The begin of the first `length` that is free from `earliest` on; it is in use from now on.
  uint64_t take(uint64_t earliest, uint64_t length);
  void clear() { taken_.clear(); }

 private:
  static constexpr size_t kKept = 4096;
  std::map<uint64_t, uint64_t> taken_;  // begin -> end, apart from each other
};

}  // namespace emu
