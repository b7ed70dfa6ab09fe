// The control page of one end of a link: device memory of ours that the peer writes and only we read. It
// carries what the two watchdogs tell each other, and the arrival flags that our streams wait for.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "acl/stream.h"
#include "transport/transport.h"

namespace datadist {

// Part of the wire protocol: both ends must be built with the same numbers.
constexpr size_t kSlots = 256;  // transfers in flight per link and direction that somebody waits for
constexpr size_t kLayers = 128;

struct Mail {
  uint64_t heartbeat;  // grows as long as the peer's watchdog lives
  uint64_t sequence;   // grows after words below changed
  uint64_t state;      // kEndIsOpen, kEndIsClosed
  uint64_t reserved[5];
  uint64_t sent[kSlots];       // what the peer sends us, as SentWord
  uint64_t taken[kSlots];      // what the peer did with what we sent, as TakenWord
  uint64_t published[kSlots];  // of a publication: what may be pulled with it, as PublishedWord
};

constexpr uint64_t kEndIsOpen = 1;
constexpr uint64_t kEndIsClosed = 2;  // its streams are drained: nothing more will be written here

constexpr size_t kFlagsOffset = 8192;
constexpr size_t kArrivedOffset = kFlagsOffset + kSlots * kLayers * sizeof(uint64_t);
constexpr size_t kCreditOffset = kArrivedOffset + kSlots * sizeof(uint64_t);
constexpr size_t kPageBytes = kCreditOffset + kSlots * sizeof(uint64_t);
static_assert(sizeof(Mail) <= kFlagsOffset);

inline size_t flag_offset(size_t slot, size_t layer) {
  return kFlagsOffset + (slot * kLayers + layer) * sizeof(uint64_t);
}

// Of a packed ticket, per slot: how many of its chunks have landed here, and how many the peer lets us send.
// They grow over the uses of a slot, so nothing of an earlier one satisfies a wait.
inline size_t arrived_offset(size_t slot) { return kArrivedOffset + slot * sizeof(uint64_t); }
inline size_t credit_offset(size_t slot) { return kCreditOffset + slot * sizeof(uint64_t); }
constexpr uint64_t chunk_count(uint32_t epoch, uint64_t chunks) { return uint64_t{epoch} << 32 | chunks; }
// Of a proven push, in the place of a number of credits: the receiver has found all that was sent.
constexpr uint64_t kAllIsFound = 0xFFFFFFFF;

// What a sender says about a slot: which layers the ticket carries, and how it stands.
struct SentWord {
  enum State : uint8_t { kNone = 0, kOpen = 1, kDrained = 2, kFailed = 3 };  // kFailed: drained as well
  uint32_t epoch = 0;
  uint8_t first_layer = 0;
  uint8_t last_layer = 0;
  uint8_t code = 0;
  State state = kNone;
  bool is_publication = false;  // brings no bytes: its one flag says that the peer may pull
  bool is_offer = false;        // goes packed if it is expected, and says how: an OfferWord
  bool is_packed = false;       // goes packed for certain
  bool is_proven = false;       // its receiver compares what arrives with sums (proof.h), and sets the flags
  bool is_begun = false;        // of such a one that goes direct: its sender has handed it to a stream
  uint64_t pack() const;
  static SentWord unpack(uint64_t word);
};

// What a publication is about. Written ahead of the SentWord that tells of it; `epoch_low` says that both are
// of the same.
struct PublishedWord {
  uint32_t cache = 0;  // of the sender, the low bits of its id
  uint32_t first_tensor = 0;
  uint32_t tensors = 0;
  uint32_t epoch_low = 0;
  static constexpr uint32_t kCacheMask = (1u << 24) - 1;
  static constexpr uint32_t kMostTensors = (1u << 12) - 1;
  static constexpr uint32_t kEpochMask = (1u << 16) - 1;
  uint64_t pack() const;
  static PublishedWord unpack(uint64_t word);
};

// How an offered push would travel. In the place of a PublishedWord, and `epoch_low` likewise.
struct OfferWord {
  uint32_t cache = 0;   // of the receiver
  uint32_t blocks = 0;  // in the list
  uint32_t window = 0;  // of the receiver's staging
  uint32_t tensors_per_layer = 0;
  uint32_t epoch_low = 0;
  static constexpr int64_t kMostCaches = 1 << 16;
  static constexpr int64_t kMostBlocks = 1 << 20;
  static constexpr int64_t kMostTensors = 1 << 8;
  uint64_t pack() const;
  static OfferWord unpack(uint64_t word);
};

// What a receiver says about a slot.
struct TakenWord {
  // kRevoked: nobody waits for it any more, so send nothing more; kRetired: the slot may be used again, and
  // so it may with kDiscarded, which says that nobody wanted it; kExpected: an offer may go packed; kDiffers:
  // as kRevoked, since what arrived is not what was sent.
  enum State : uint8_t { kNone = 0, kRetired = 1, kRevoked = 2, kDiscarded = 3, kExpected = 4, kDiffers = 5 };
  uint32_t epoch = 0;
  uint8_t code = 0;
  State state = kNone;
  uint64_t pack() const;
  static TakenWord unpack(uint64_t word);
};

// LLMStatusCode <-> one byte, for the words above.
uint8_t short_code(int64_t code);
int64_t long_code(uint8_t code);

// A page that is released stops a stream which waits for `epoch`, whatever the sender writes: the compare is
// signed.
constexpr uint64_t poison_of(uint64_t epoch) { return epoch + (uint64_t{1} << 62); }

struct Page {
  char* address = nullptr;
  const Mail* mail = nullptr;  // mirror, as of the watchdog's last tick
};

// Pages lie in chunks, so that one 2-D copy per chunk and tick brings all mail.
class PageArena {
 public:
  static constexpr size_t kPagesPerChunk = 16;

  explicit PageArena(std::function<DeviceMemory(size_t)> allocate) : allocate_(std::move(allocate)) {}
  Page take();                // zeroed
  void give_back(Page page);  // nobody writes to it any more; the watchdog has zeroed it
  void queue_reads(aclrtStream stream);
  // Of these at least.
  void queue_reads(const std::vector<Page>& pages, aclrtStream stream);

 private:
  struct Chunk {
    DeviceMemory memory;
    std::unique_ptr<acl::PinnedBuffer> mirror;
    size_t in_use = 0;
    bool holds(const Page& page) const {
      return page.address >= memory.address && page.address < memory.address + kPagesPerChunk * kPageBytes;
    }
    size_t index_of(const Page& page) const {
      return static_cast<size_t>(page.address - memory.address) / kPageBytes;
    }
    void queue_reads(size_t first, size_t count, aclrtStream stream) const;
  };
  Chunk& chunk_of(const Page& page);

  std::mutex mutex_;
  std::function<DeviceMemory(size_t)> allocate_;
  std::vector<Chunk> chunks_;
  std::deque<Page> free_;
};

}  // namespace datadist
