#include "link/proof.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "transport/mapped/fabric.h"

namespace datadist {
namespace {

constexpr uint64_t kOdd = 0x9E3779B97F4A7C15;

uint64_t step(uint64_t sum, uint64_t word) {
  sum = (sum ^ word) * kOdd;
  return sum ^ (sum >> 29);
}

}  // namespace

uint64_t sum_of(uint64_t sum, const char* bytes, size_t count) {
  while (count > 0) {
    const size_t taken = std::min(count, sizeof(uint64_t));
    uint64_t word = 0;
    std::memcpy(&word, bytes, taken);
    sum = step(sum, word);
    bytes += taken;
    count -= taken;
  }
  return step(sum, 1);
}

size_t ProvenList::write(int64_t* words) const {
  int64_t* at = words + kListAt;
  *at++ = cache;
  *at++ = tensors_per_layer;
  *at++ = static_cast<int64_t>(runs.size());
  for (const Run& run : runs) *at++ = run.dst << 32 | run.blocks;
  return static_cast<size_t>(at - (words + kListAt));
}

ProvenList ProvenList::read(const int64_t* words) {
  const int64_t* at = words + kListAt;
  ProvenList list;
  list.cache = *at++;
  list.tensors_per_layer = *at++;
  const int64_t count = std::clamp<int64_t>(*at++, 0, kMostProvenRuns);
  list.runs.reserve(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i, ++at) list.runs.push_back({0, *at >> 32, *at & 0xFFFFFFFF});
  return list;
}

char* Proofs::make_own(int device) {
  own_ = mapped::allocate_for_peers(device, kProofsBytes);
  return own_.address;
}

bool Proofs::is_own(const char* address, size_t bytes) const {
  const char* const end = own_.address + kProofsBytes;
  return own_.address != nullptr && address >= own_.address && address < end &&
         bytes <= static_cast<size_t>(end - address);
}

void Adding::begin(const Place& from, size_t bytes) {
  from_ = from;
  bytes_ = bytes;
  done_ = 0;
  piece_ = 0;
}

bool Adding::next(Step* step) {
  char* const read = staging_->compared->as<char>();
  if (piece_ > 0) {
    if (route_.next(step)) return true;
    *step = copies_->add_to_sum(read, piece_);
    done_ += std::exchange(piece_, 0);
    return true;
  }
  if (done_ == bytes_) return false;
  piece_ = std::min(kComparedBytes, bytes_ - done_);
  Place from = from_;
  from.address += done_;
  route_.begin({read, Reach::kPinned}, from, piece_);
  return route_.next(step);
}

RouteNeeds needs_of_adding(Reach from) {
  RouteNeeds needs;
  needs.add({.host_copies = true, .has_host_end = false, .comparison = true});
  if (from == Reach::kImported) needs.device_buffer = true;
  return needs;
}

}  // namespace datadist
