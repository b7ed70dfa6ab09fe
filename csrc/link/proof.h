// What the sender of a ticket says of what it sent, where both ends were told to verify (verify_blocks): per
// layer a sum over the bytes, read at the source, and which blocks it wrote. It lies at the receiver, which
// adds up what arrived, in its own blocks, and sets the layer's arrival flag when that is the same: so nobody
// is let go on by bytes that changed on their way.
//
//   sender's stream                        receiver's streams
//   list -> proof, arrived = 1             arrived 1: the list, read; the watchdog checks it
//   layer i, sum i -> proof, arrived i+2   arrived i+2: read, added up, compared; the watchdog looks; flag i
//   waits for the credit: done             all found: credit
//
// Of a packed push the receiver has the list, and its chunks count in `arrived`: what is added up is what was
// scattered. Where the list does not fit, and to a receiver that was not told to verify, the sender reads
// back what it copied, as of any transfer (verification.h).
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "link/page.h"
#include "link/route.h"
#include "plan/plan.h"
#include "transport/transport.h"

namespace datadist {

// Part of the wire protocol. In words of eight bytes: the sums, then the list.
constexpr size_t kProofWords = 4096;
constexpr size_t kProofBytes = kProofWords * sizeof(uint64_t);
constexpr size_t kProofsBytes = kSlots * kProofBytes;  // of a link
constexpr size_t kListAt = kLayers;
constexpr size_t kRunsAt = kListAt + 3;
constexpr size_t kMostProvenRuns = kProofWords - kRunsAt;

// Goes on with a sum. Where one word differs, so does the sum: each step can be undone.
uint64_t sum_of(uint64_t sum, const char* bytes, size_t count);

// Where a push writes, at its receiver.
struct ProvenList {
  int64_t cache = 0;
  int64_t tensors_per_layer = 0;
  std::vector<Run> runs;  // `dst` and `blocks` of each, in the order in which they are added up

  // From `words[kListAt]` on; how many words of it.
  size_t write(int64_t* words) const;
  static ProvenList read(const int64_t* words);
};

inline bool fits_proof(size_t runs) { return runs <= kMostProvenRuns; }

// Both ends of a link's proofs.
class Proofs {
 public:
  // --- what lands here; before the link is connected
  char* make_own(int device);
  bool has_own() const { return own_.address != nullptr; }
  char* own(uint32_t slot) const { return own_.address + slot * kProofBytes; }
  bool is_own(const char* address, size_t bytes) const;
  void free_own() { own_ = {}; }

  // --- what goes out
  void learn_peer(Mapped mapping) {
    peer_ = std::move(mapping);
    knows_peer_.store(peer_.address != nullptr, std::memory_order_release);
  }
  // Also while the link is closed: who has begun nothing by then is refused later.
  bool knows_peer() const { return knows_peer_.load(std::memory_order_acquire); }
  char* peer(uint32_t slot) const { return peer_.address + slot * kProofBytes; }
  Mapped take_peer() {
    knows_peer_.store(false, std::memory_order_release);
    return std::exchange(peer_, {});
  }

 private:
  DeviceMemory own_;
  Mapped peer_;
  std::atomic<bool> knows_peer_{false};
};

// The steps that add up what lies at some place: piece by piece it comes to page-locked memory.
class Adding {
 public:
  Adding(const Staging* staging, HostCopies* copies)
      : staging_(staging), copies_(copies), route_(staging, copies) {}

  void begin(const Place& from, size_t bytes);
  // The next step of it; false when there is none left.
  bool next(Step* step);

 private:
  const Staging* const staging_;
  HostCopies* const copies_;
  Route route_;
  Place from_;
  size_t bytes_ = 0;
  size_t done_ = 0;
  size_t piece_ = 0;
};

RouteNeeds needs_of_adding(Reach from);

}  // namespace datadist
