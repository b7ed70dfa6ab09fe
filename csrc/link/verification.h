// A second look at what was copied: both ends of a piece are read into page-locked memory, and a host
// function compares them. It is queued behind the copies and ahead of whatever says that they arrived, so
// nobody is told of bytes that differ. What lies at the peer is read back as a pull would read it.
#pragma once

#include <cstdint>
#include <string>

#include "link/route.h"

namespace datadist {

// What is compared, for the message: from one block, or batch entry, of a tensor on.
struct Compared {
  int64_t tensor = 0;  // of the local cache
  bool is_push = true;
  bool src_is_entry = false;
  bool dst_is_entry = false;
  bool dst_is_staging = false;  // of the receiver: the place in the list of blocks counts
  int64_t src = 0;
  int64_t dst = 0;
  size_t block_bytes = 1;  // after so many bytes the next blocks begin

  // That the byte so far behind the beginning is another one there.
  std::string difference(size_t at, char src_byte, char dst_byte) const;
};

class Verification {
 public:
  Verification(const Staging* staging, HostCopies* copies)
      : staging_(staging), copies_(copies), route_(staging, copies) {}

  void begin(const Place& src, const Place& dst, size_t bytes, const Compared& what);
  // The next step of it; false when there is none left.
  bool next(Step* step);

 private:
  enum class At { kSource, kDestination, kCompare };

  const Staging* const staging_;
  HostCopies* const copies_;
  Route route_;
  Place src_;
  Place dst_;
  Compared what_;
  size_t bytes_ = 0;
  size_t done_ = 0;
  size_t piece_ = 0;
  At at_ = At::kCompare;  // of nothing
};

}  // namespace datadist
