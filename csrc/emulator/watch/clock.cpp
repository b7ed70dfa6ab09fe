#include "emulator/watch/clock.h"

#include <algorithm>

namespace emu::watch {

void Clock::join(const Clock& other) {
  // Who knows a point knows what came before it.
  if (covers(other.line_, other.at_)) return;
  const size_t here = others_ == nullptr ? 0 : others_->size();
  const size_t there = other.others_ == nullptr ? 0 : other.others_->size();
  std::vector<uint64_t> all(std::max({here, there, size_t{other.line_} + 1, size_t{line_} + 1}), 0);
  for (size_t i = 0; i < here; ++i) all[i] = (*others_)[i];
  for (size_t i = 0; i < there; ++i) all[i] = std::max(all[i], (*other.others_)[i]);
  if (other.line_ != line_) all[other.line_] = std::max(all[other.line_], other.at_);
  all[line_] = 0;
  others_ = std::make_shared<const std::vector<uint64_t>>(std::move(all));
  ++at_;
}

Clock Clock::next_on(const Clock& left) {
  Clock fresh(left.line_);
  fresh.at_ = left.at_ + 1;
  return fresh;
}

}  // namespace emu::watch
