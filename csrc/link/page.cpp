#include "link/page.h"

#include <algorithm>
#include <cstring>

#include "acl/check.h"
#include "error.h"

namespace datadist {
namespace {

constexpr int64_t kStatusBase = 0x5010B000;
constexpr uint8_t kPublicationBit = 0x80;
constexpr uint8_t kOfferBit = 0x40;
constexpr uint8_t kPackedBit = 0x20;
constexpr uint8_t kProvenBit = 0x10;
constexpr uint8_t kBegunBit = 0x08;
constexpr uint8_t kStateBits = 0x07;

}  // namespace

uint8_t short_code(int64_t code) {
  if (code == kSuccess) return 0;
  if (code > kStatusBase && code < kStatusBase + 0x80) return static_cast<uint8_t>(code - kStatusBase);
  return 0xFF;
}

int64_t long_code(uint8_t code) {
  if (code == 0) return kSuccess;
  return code == 0xFF ? static_cast<int64_t>(kFailed) : kStatusBase + code;
}

uint64_t SentWord::pack() const {
  return uint64_t{epoch} << 32 | uint64_t{first_layer} << 24 | uint64_t{last_layer} << 16 |
         uint64_t{code} << 8 | (is_publication ? kPublicationBit : 0) | (is_offer ? kOfferBit : 0) |
         (is_packed ? kPackedBit : 0) | (is_proven ? kProvenBit : 0) | (is_begun ? kBegunBit : 0) | state;
}

SentWord SentWord::unpack(uint64_t word) {
  return {static_cast<uint32_t>(word >> 32),
          static_cast<uint8_t>(word >> 24),
          static_cast<uint8_t>(word >> 16),
          static_cast<uint8_t>(word >> 8),
          static_cast<State>(word & kStateBits),
          (word & kPublicationBit) != 0,
          (word & kOfferBit) != 0,
          (word & kPackedBit) != 0,
          (word & kProvenBit) != 0,
          (word & kBegunBit) != 0};
}

uint64_t PublishedWord::pack() const {
  return uint64_t{cache & kCacheMask} << 40 | uint64_t{first_tensor} << 28 | uint64_t{tensors} << 16 |
         (epoch_low & kEpochMask);
}

PublishedWord PublishedWord::unpack(uint64_t word) {
  return {static_cast<uint32_t>(word >> 40), static_cast<uint32_t>(word >> 28) & kMostTensors,
          static_cast<uint32_t>(word >> 16) & kMostTensors, static_cast<uint32_t>(word) & kEpochMask};
}

uint64_t OfferWord::pack() const {
  return uint64_t{cache} << 48 | uint64_t{blocks} << 28 | uint64_t{window} << 24 |
         uint64_t{tensors_per_layer} << 16 | (epoch_low & PublishedWord::kEpochMask);
}

OfferWord OfferWord::unpack(uint64_t word) {
  return {static_cast<uint32_t>(word >> 48) & 0xFFFF, static_cast<uint32_t>(word >> 28) & 0xFFFFF,
          static_cast<uint32_t>(word >> 24) & 0xF, static_cast<uint32_t>(word >> 16) & 0xFF,
          static_cast<uint32_t>(word) & PublishedWord::kEpochMask};
}

uint64_t TakenWord::pack() const { return uint64_t{epoch} << 32 | uint64_t{code} << 8 | state; }

TakenWord TakenWord::unpack(uint64_t word) {
  return {static_cast<uint32_t>(word >> 32), static_cast<uint8_t>(word >> 8),
          static_cast<State>(word & 0xFF)};
}

Page PageArena::take() {
  while (true) {
    {
      std::lock_guard lock(mutex_);
      if (!free_.empty()) {
        const Page page = free_.front();
        free_.pop_front();
        ++chunk_of(page).in_use;
        return page;
      }
    }
    // Without the lock, as for words.
    Chunk chunk{allocate_(kPagesPerChunk * kPageBytes),
                std::make_unique<acl::PinnedBuffer>(kPagesPerChunk * sizeof(Mail))};
    std::memset(chunk.mirror->as<void>(), 0, kPagesPerChunk * sizeof(Mail));
    std::lock_guard lock(mutex_);
    for (size_t i = 0; i < kPagesPerChunk; ++i) {
      free_.push_back({chunk.memory.address + i * kPageBytes, chunk.mirror->as<Mail>() + i});
    }
    chunks_.push_back(std::move(chunk));
  }
}

void PageArena::give_back(Page page) {
  std::lock_guard lock(mutex_);
  --chunk_of(page).in_use;
  std::memset(const_cast<Mail*>(page.mail), 0, sizeof(Mail));
  free_.push_back(page);
}

PageArena::Chunk& PageArena::chunk_of(const Page& page) {
  return *std::find_if(chunks_.begin(), chunks_.end(), [&](const Chunk& chunk) { return chunk.holds(page); });
}

void PageArena::Chunk::queue_reads(size_t first, size_t count, aclrtStream stream) const {
  acl::read_rows(mirror->as<char>() + first * sizeof(Mail), sizeof(Mail), memory.address + first * kPageBytes,
                 kPageBytes, sizeof(Mail), count, stream);
}

void PageArena::queue_reads(aclrtStream stream) {
  std::lock_guard lock(mutex_);
  for (const Chunk& chunk : chunks_) {
    if (chunk.in_use > 0) chunk.queue_reads(0, kPagesPerChunk, stream);
  }
}

void PageArena::queue_reads(const std::vector<Page>& pages, aclrtStream stream) {
  std::lock_guard lock(mutex_);
  for (const Chunk& chunk : chunks_) {
    size_t first = kPagesPerChunk;
    size_t end = 0;
    for (const Page& page : pages) {
      if (!chunk.holds(page)) continue;
      first = std::min(first, chunk.index_of(page));
      end = std::max(end, chunk.index_of(page) + 1);
    }
    if (first < end) chunk.queue_reads(first, end - first, stream);
  }
}

}  // namespace datadist
