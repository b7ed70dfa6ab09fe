#include "link/verification.h"

#include <algorithm>
#include <iomanip>
#include <sstream>
#include <utility>

#include "error.h"
#include "messages/messages.h"

namespace datadist {
namespace {

std::string hex(char byte) {
  std::ostringstream out;
  out << "0x" << std::hex << std::setw(2) << std::setfill('0')
      << static_cast<unsigned>(static_cast<unsigned char>(byte));
  return out.str();
}

std::string place_name(bool is_entry, int64_t first, size_t blocks) {
  return is_entry ? join("batch entry ", first) : join("block ", first + static_cast<int64_t>(blocks));
}

}  // namespace

std::string Compared::difference(size_t at, char src_byte, char dst_byte) const {
  const size_t blocks = at / block_bytes;
  const std::string from = place_name(src_is_entry, src, blocks);
  const std::string to =
      dst_is_staging ? join("staging of dst_blocks[", dst, "]") : place_name(dst_is_entry, dst, blocks);
  const std::string where =
      join("tensor ", tensor, " of local ", is_push ? from : to, " and remote ", is_push ? to : from);
  return render(
      Message::bytes_differ,
      {{"where", where}, {"at", at % block_bytes}, {"value", hex(src_byte)}, {"found", hex(dst_byte)}});
}

void Verification::begin(const Place& src, const Place& dst, size_t bytes, const Compared& what) {
  src_ = src;
  dst_ = dst;
  bytes_ = bytes;
  what_ = what;
  done_ = 0;
  piece_ = 0;
  at_ = At::kCompare;
}

bool Verification::next(Step* step) {
  char* const read = staging_->compared->as<char>();
  if (at_ == At::kSource) {
    if (route_.next(step)) return true;
    at_ = At::kDestination;
    Place from = dst_;
    from.address += done_;
    route_.begin({read + kComparedBytes, Reach::kPinned}, from, piece_);
  }
  if (at_ == At::kDestination) {
    if (route_.next(step)) return true;
    at_ = At::kCompare;
    *step = copies_->compare(read, read + kComparedBytes, piece_, what_, done_);
    return true;
  }
  done_ += std::exchange(piece_, 0);
  if (done_ == bytes_) return false;
  piece_ = std::min(kComparedBytes, bytes_ - done_);
  Place from = src_;
  from.address += done_;
  route_.begin({read, Reach::kPinned}, from, piece_);
  at_ = At::kSource;
  return next(step);
}

}  // namespace datadist
