#include "transport/engine/messages.h"

#include <bit>
#include <cstring>

namespace datadist::engine {
namespace {

static_assert(std::endian::native == std::endian::little);

constexpr uint32_t kMagic = 0x4c444531;  // with the version of what follows

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

std::optional<Message> decode(std::string_view text) {
  Head head{};
  if (text.size() < sizeof head) return std::nullopt;
  std::memcpy(&head, text.data(), sizeof head);
  if (head.magic != kMagic || head.kind < Message::kWords || head.kind > Message::kFilled)
    return std::nullopt;
  Message message;
  message.kind = static_cast<Message::Kind>(head.kind);
  message.chunk = head.chunk;
  text.remove_prefix(sizeof head);
  const bool is_whole = message.kind == Message::kWords ? read(text, head.count, &message.words)
                                                        : read(text, head.count, &message.ranges);
  return is_whole ? std::optional(std::move(message)) : std::nullopt;
}

std::string encode(const Address& address) {
  const AddressHead head{kMagic, address.chunks, address.chunks_at, address.chunk_bytes};
  return std::string(reinterpret_cast<const char*>(&head), sizeof head) + address.engine;
}

std::optional<Address> decode_address(std::string_view text) {
  AddressHead head{};
  if (text.size() < sizeof head) return std::nullopt;
  std::memcpy(&head, text.data(), sizeof head);
  const uint64_t most = uint64_t{1} << 40;
  if (head.magic != kMagic || head.chunks > 1024 || head.chunk_bytes > most) return std::nullopt;
  return Address{head.chunks_at, head.chunk_bytes, head.chunks, std::string(text.substr(sizeof head))};
}

}  // namespace datadist::engine
