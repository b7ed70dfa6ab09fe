#include "emulator/copy_row.h"

#include <algorithm>
#include <utility>

#include "emulator/block.h"
#include "emulator/copy_engines.h"
#include "emulator/device.h"
#include "emulator/runtime.h"

namespace emu {
namespace {

constexpr size_t kPart = size_t{64} << 10;
constexpr size_t kLeastToShare = size_t{64} << 10;
constexpr size_t kLeastToWake = size_t{1} << 20;

struct Strip {
  uintptr_t begin;
  size_t width;
  size_t pitch;
  size_t span;
};

Strip dst_of(const Copy& copy) { return {copy.dst, copy.width, copy.dst_pitch, copy.dst_span()}; }
Strip src_of(const Copy& copy) { return {copy.src, copy.width, copy.src_pitch, copy.src_span()}; }

// False also where that is not easy to see. Rows of a slab lie between its other rows.
bool are_apart(const Strip& a, const Strip& b) {
  if (a.begin + a.span <= b.begin || b.begin + b.span <= a.begin) return true;
  if (a.pitch != b.pitch || a.pitch == 0) return false;
  const bool is_before = a.begin < b.begin;
  const size_t apart = (is_before ? b.begin - a.begin : a.begin - b.begin) % a.pitch;
  return apart >= (is_before ? a : b).width && apart + (is_before ? b : a).width <= a.pitch;
}

}  // namespace

bool CopyRow::waits_for_others(const Copy& copy) const {
  const Strip dst = dst_of(copy);
  const Strip src = src_of(copy);
  for (size_t i = 0; i < size_; ++i) {
    const Copy& before = entries_[i].copy;
    if (!are_apart(dst, dst_of(before)) || !are_apart(dst, src_of(before)) || !are_apart(src, dst_of(before)))
      return true;
  }
  return false;
}

bool CopyRow::hold(const Copy& copy, const Device& from, Entry& entry) {
  std::string why;
  // As a rule they lie where the copy before has its ends.
  const auto lies_in = [](const Pin& pin, uintptr_t address, size_t length) {
    return pin.block != nullptr && pin.block->physical == nullptr && pin.block->contains(address, length);
  };
  if (size_ == 0 || !lies_in(held_[dst_pin_], copy.dst, copy.dst_span()) ||
      !lies_in(held_[src_pin_], copy.src, copy.src_span())) {
    Pin dst;
    Pin src;
    if (pin(copy, from, dst, src, why) != ACL_SUCCESS) return false;
    dst_pin_ = held_.size();
    src_pin_ = dst_pin_ + 1;
    entry.dst = dst.host;
    entry.src = src.host;
    held_.push_back(std::move(dst));
    held_.push_back(std::move(src));
    return true;
  }
  if (from.error.check(copy.dst, copy.dst_span(), why) != ACL_SUCCESS ||
      from.error.check(copy.src, copy.src_span(), why) != ACL_SUCCESS)
    return false;
  entry.dst = held_[dst_pin_].block->host(copy.dst);
  entry.src = held_[src_pin_].block->host(copy.src);
  return true;
}

bool CopyRow::add(const Copy& copy, const Device& from) {
  const size_t bytes = copy.bytes();
  if (size_ == kMost || bytes_ >= kMostBytes || bytes > kLongest || bytes == 0) return false;
  if (bytes == sizeof(uint64_t)) return false;  // a flag: who waits for it is told (move_word)
  if (!are_apart(dst_of(copy), src_of(copy)) || waits_for_others(copy)) return false;
  Entry& entry = entries_[size_];
  if (!hold(copy, from, entry)) return false;
  entry.copy = copy;
  entry.first_part = parts_;
  parts_ += (bytes + kPart - 1) / kPart;
  bytes_ += bytes;
  ++size_;
  return true;
}

void CopyRow::move_part_of(const void* row, size_t part) {
  const auto& self = *static_cast<const CopyRow*>(row);
  const auto* const begin_of_all = self.entries_.data();
  const auto* const after =
      std::upper_bound(begin_of_all, begin_of_all + self.size_, part,
                       [](size_t wanted, const Entry& entry) { return wanted < entry.first_part; });
  const Entry& entry = *(after - 1);
  const size_t begin = (part - entry.first_part) * kPart;
  move_part(entry.copy, entry.dst, entry.src, begin, std::min(begin + kPart, entry.copy.bytes()));
}

void CopyRow::move(bool more_to_come) {
  if (bytes_ < kLeastToShare) {
    for (size_t part = 0; part < parts_; ++part) move_part_of(this, part);
  } else {
    Runtime::get().copy_engines->run(parts_, &CopyRow::move_part_of, this,
                                     more_to_come || bytes_ >= kLeastToWake);
  }
  Runtime::get().bytes_copied.fetch_add(bytes_, std::memory_order_relaxed);
}

void CopyRow::clear() {
  held_.clear();
  size_ = bytes_ = parts_ = 0;
}

}  // namespace emu
