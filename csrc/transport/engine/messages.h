// What the two ends of a link say to each other through an engine's messages. Fixed layout, little-endian as
// all that this runs on is; read with every length checked, since a peer may say anything.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace datadist::engine {

struct Range {
  uint64_t address = 0;
  uint64_t bytes = 0;
};

struct WordWrite {
  uint64_t address = 0;
  uint64_t value = 0;
};

struct Message {
  enum Kind : uint8_t {
    kWords = 1,    // write these words, after what came before
    kScatter = 2,  // chunk `chunk` of yours is filled: copy it to these ranges, one behind the other
    kTaken = 3,    // I have done so: my chunk is free
    kFetch = 4,    // fill my chunk from these ranges of yours
    kFilled = 5,   // I have done so
    kReach = 6,    // chunk 1: I read or write memory of yours directly from now on; 0: no more
  };
  Kind kind = kWords;
  uint32_t chunk = 0;
  std::vector<Range> ranges;
  std::vector<WordWrite> words;
};

constexpr size_t kMessageHead = 16;
constexpr size_t kBytesOfARange = sizeof(Range);

std::string encode(const Message& message);
// nullopt where it is none, and `why`.
std::optional<Message> decode(std::string_view text, std::string* why);

// What one end tells the other before anything moves: where its chunks lie.
struct Address {
  uint64_t chunks_at = 0;  // for pushes, then as many for pulls
  uint64_t chunk_bytes = 0;
  uint32_t chunks = 0;  // of each; 0 where the engine needs none
  std::string engine;   // the engine's own
};

constexpr uint64_t kLeastChunkBytes = 4096;
constexpr uint64_t kMostChunkBytes = uint64_t{1} << 30;
constexpr uint32_t kMostChunks = 64;

std::string encode(const Address& address);
std::optional<Address> decode_address(std::string_view text, std::string* why);

}  // namespace datadist::engine
