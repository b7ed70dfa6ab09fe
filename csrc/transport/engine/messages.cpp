#include "transport/engine/messages.h"

#include <bit>
#include <cstring>

#include "error.h"

namespace datadist::engine {
namespace {

static_assert(std::endian::native == std::endian::little);

constexpr uint32_t kMagic = 0x4c444532;  // with the version of what follows

struct Head {
  uint32_t magic;
  uint32_t kind;
  uint32_t chunk;
  uint32_t count;
};
static_assert(sizeof(Head) == kMessageHead);

struct AddressHead {
  uint32_t magic;
  uint32_t chunks;
  uint64_t chunks_at;
  uint64_t chunk_bytes;
};

template <typename T>
void append(std::string* text, const std::vector<T>& items) {
  text->append(reinterpret_cast<const char*>(items.data()), items.size() * sizeof(T));
}

template <typename T>
bool read(std::string_view rest, size_t count, std::vector<T>* items) {
  if (rest.size() != count * sizeof(T)) return false;
  items->resize(count);
  if (count > 0) std::memcpy(items->data(), rest.data(), rest.size());
  return true;
}

}  // namespace

std::string encode(const Message& message) {
  const bool has_words = message.kind == Message::kWords;
  const size_t count = has_words ? message.words.size() : message.ranges.size();
  const Head head{kMagic, message.kind, message.chunk, static_cast<uint32_t>(count)};
  std::string text(reinterpret_cast<const char*>(&head), sizeof head);
  if (has_words) {
    append(&text, message.words);
  } else {
    append(&text, message.ranges);
  }
  return text;
}

std::optional<Message> decode(std::string_view text, std::string* why) {
  const auto refuse = [&](std::string what) {
    *why = std::move(what);
    return std::nullopt;
  };
  Head head{};
  if (text.size() < sizeof head) return refuse(join("they end before the ", sizeof head, " bytes of a head"));
  std::memcpy(&head, text.data(), sizeof head);
  if (head.magic != kMagic) return refuse(join("they begin with ", head.magic, ", expected ", kMagic));
  if (head.kind < Message::kWords || head.kind > Message::kReach)
    return refuse(join("their kind is ", head.kind, ", expected 1 to ", uint32_t{Message::kReach}));
  Message message;
  message.kind = static_cast<Message::Kind>(head.kind);
  message.chunk = head.chunk;
  text.remove_prefix(sizeof head);
  const bool is_whole = message.kind == Message::kWords ? read(text, head.count, &message.words)
                                                        : read(text, head.count, &message.ranges);
  if (!is_whole)
    return refuse(join("they announce ", head.count, " items, and ", text.size(), " bytes follow"));
  if (head.count > 0 && message.kind != Message::kWords && message.kind != Message::kScatter &&
      message.kind != Message::kFetch)
    return refuse(join("their kind, ", head.kind, ", has no items, and they have ", head.count));
  for (const Range& range : message.ranges) {
    if (range.bytes == 0 || range.address + range.bytes < range.address)
      return refuse(join("they name ", range.bytes, " bytes at ", range.address));
  }
  return message;
}

std::string encode(const Address& address) {
  const AddressHead head{kMagic, address.chunks, address.chunks_at, address.chunk_bytes};
  return std::string(reinterpret_cast<const char*>(&head), sizeof head) + address.engine;
}

std::optional<Address> decode_address(std::string_view text, std::string* why) {
  AddressHead head{};
  if (text.size() < sizeof head) {
    *why = join(text.size(), " bytes, expected at least ", sizeof head);
    return std::nullopt;
  }
  std::memcpy(&head, text.data(), sizeof head);
  const bool is_size = head.chunk_bytes >= kLeastChunkBytes && head.chunk_bytes <= kMostChunkBytes;
  const uint64_t bytes = is_size ? 2 * uint64_t{head.chunks} * head.chunk_bytes : 0;
  if (head.magic != kMagic) {
    *why = join("it begins with ", head.magic, ", expected ", kMagic);
  } else if (head.chunks > kMostChunks || !is_size || head.chunks_at + bytes < head.chunks_at) {
    *why = join(head.chunks, " chunks of ", head.chunk_bytes, " bytes at ", head.chunks_at,
                ", expected up to ", kMostChunks, " of ", kLeastChunkBytes, " to ", kMostChunkBytes);
  } else {
    return Address{head.chunks_at, head.chunk_bytes, head.chunks, std::string(text.substr(sizeof head))};
  }
  return std::nullopt;
}

}  // namespace datadist::engine
