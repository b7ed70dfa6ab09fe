#pragma once

#include <cstdint>
#include <memory>
#include <vector>

namespace emu::watch {

// A point on a time line, with all points of other lines that come before it. Copied for the price of a
// pointer: what is known of the others is never changed, only replaced.
class Clock {
 public:
  Clock() = default;
  explicit Clock(uint32_t line) : line_(line) {}

  uint32_t line() const { return line_; }
  uint64_t at() const { return at_; }

  void advance() { ++at_; }
  // True when that point comes before this one, or is it.
  bool covers(uint32_t line, uint64_t at) const {
    if (line == line_) return at <= at_;
    return others_ != nullptr && line < others_->size() && (*others_)[line] >= at;
  }
  // From now on `other` comes before. A point never gains a past under the same number: this moves on.
  void join(const Clock& other);
  // A line that was left begins again for somebody else, after its last point.
  static Clock next_on(const Clock& left);

 private:
  uint32_t line_ = 0;
  uint64_t at_ = 0;
  std::shared_ptr<const std::vector<uint64_t>> others_;
};

}  // namespace emu::watch
