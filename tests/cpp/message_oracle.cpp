#include "message_oracle.h"

#include <array>
#include <atomic>
#include <string>
#include <vector>

#include "acl/check.h"
#include "chance.h"
#include "check.h"
#include "scripted_engine.h"

namespace datadist::message_oracle {
namespace {

using namespace scripted;

constexpr int kMessages = 200;
constexpr char kSecret = 0x5a;  // fills what is not offered
constexpr size_t kOffered = kBytes / 2;
constexpr size_t kWordsOffered = kPageBytes / 2;

template <typename T, size_t N>
T one_of(Chance& chance, const std::array<T, N>& values) {
  return values[static_cast<size_t>(chance.below(N))];
}

std::string damaged(Chance& chance, std::string text) {
  constexpr std::array<uint32_t, 6> kHostile{0, 1, 7, 64, INT32_MAX, UINT32_MAX};
  for (int64_t n = chance.below(4); n > 0; --n) {
    const size_t at = static_cast<size_t>(chance.below(static_cast<int64_t>(text.size()) + 1));
    switch (chance.below(5)) {
      case 0:
        text.resize(at);
        break;
      case 1:
        text.insert(at, static_cast<size_t>(1 + chance.below(20)), static_cast<char>(chance.next()));
        break;
      case 2:
        if (at < text.size()) text[at] = static_cast<char>(chance.next());
        break;
      case 3:
        text += text.substr(at);
        break;
      default:
        if (const uint32_t value = one_of(chance, kHostile); at / 4 * 4 + sizeof value <= text.size())
          std::memcpy(text.data() + at / 4 * 4, &value, sizeof value);
    }
  }
  return text;
}

uint64_t random_size(Chance& chance) {
  constexpr std::array<uint64_t, 6> kSizes{8, kChunk, kChunk + 1, 0, UINT64_MAX, uint64_t{1} << 40};
  return chance.once_in(2) ? static_cast<uint64_t>(chance.below(kChunk)) : one_of(chance, kSizes);
}

Message random_message(Chance& chance, const std::array<uint64_t, 8>& addresses) {
  Message message;
  message.kind = static_cast<Message::Kind>(1 + chance.below(6));
  message.chunk = static_cast<uint32_t>(chance.once_in(8) ? chance.next() : chance.next() % 3);
  for (int64_t n = chance.below(4); n > 0; --n)
    message.ranges.push_back({one_of(chance, addresses), random_size(chance)});
  for (int64_t n = chance.below(3); n > 0; --n)
    message.words.push_back({one_of(chance, addresses), chance.next()});
  return message;
}

Address random_address(Chance& chance) {
  return {chance.once_in(2) ? kPeerChunks : chance.next(), chance.once_in(2) ? kChunk : random_size(chance),
          static_cast<uint32_t>(chance.once_in(8) ? chance.next() : chance.next() % 80),
          std::string(static_cast<size_t>(chance.below(40)), 'x')};
}

// What is read is all of the text, and nothing beside it: a vector ends where a sanitizer sees it.
void read(const std::string& text) {
  const std::vector<char> exact(text.begin(), text.end());
  const std::string_view view(exact.data(), exact.size());
  std::string why;
  if (const auto message = decode(view, &why)) {
    CHECK(encode(*message) == text);
    for (const Range& range : message->ranges) {
      CHECK(range.address + range.bytes > range.address);
    }
  } else {
    CHECK(!why.empty());
  }
  why.clear();
  if (const auto address = decode_address(view, &why)) {
    CHECK(encode(*address) == text);
    CHECK(address->chunks <= kMostChunks);
    CHECK(address->chunk_bytes >= kLeastChunkBytes && address->chunk_bytes <= kMostChunkBytes);
    CHECK(address->chunks_at + 2 * address->chunks * address->chunk_bytes >= address->chunks_at);
  } else {
    CHECK(!why.empty());
  }
}

void hide(const DeviceMemory& memory, size_t from, size_t to) {
  DATADIST_ACL(aclrtMemset(memory.address + from, to - from, kSecret, to - from));
}

bool is_untouched(const DeviceMemory& memory, size_t from, size_t to) {
  std::string found(to - from, 0);
  DATADIST_ACL(aclrtMemcpy(found.data(), found.size(), memory.address + from, found.size(),
                           ACL_MEMCPY_DEVICE_TO_HOST));
  return found == std::string(found.size(), kSecret);
}

// Of what is offered.
std::string beyond_the_end(Chance& chance, uint64_t memory, uint64_t page) {
  const auto before = static_cast<uint64_t>(1 + chance.below(kChunk / 2));
  const Range range{memory + kOffered - before,
                    before + 16 + static_cast<uint64_t>(chance.below(kChunk / 4))};
  switch (chance.below(3)) {
    case 0:
      return encode(ranges(Message::kFetch, 1, {range}));
    case 1:
      return encode(ranges(Message::kScatter, 1, {range}));
    default:
      return encode(Message{Message::kWords, 0, {}, {{page + kWordsOffered - before % 8, 0}}});
  }
}

int try_link(Chance& chance) {
  End end;
  std::atomic<bool> has_told{false};
  end.offered = kOffered;
  end.words_offered = kWordsOffered;
  DATADIST_ACL(aclrtMemset(end.memory.address, kOffered, 0, kOffered));
  hide(end.memory, kOffered, kBytes);
  hide(end.page, kWordsOffered, kPageBytes);
  end.wire->at_post = [&](const std::vector<engine::Piece>& pieces) {
    for (const engine::Piece& piece : pieces) {
      if (std::string_view(piece.local, piece.bytes).find(std::string(16, kSecret)) != std::string::npos)
        has_told = true;
    }
  };
  // Something of its own under way, that the peer may answer.
  aclrtStream stream = end.stream();
  end.push(stream, 0, static_cast<size_t>(1 + chance.below(3)));
  if (chance.once_in(2)) end.write_word(stream);
  if (chance.once_in(2)) {
    CHECK_EQUAL(end.transport->copy(end.memory.address, end.remote.address, kChunk, stream), 0);
    CHECK_EQUAL(end.transport->flush(stream), 0);
  }

  const uint64_t memory = address_of(end.memory);
  const uint64_t page = address_of(end.page);
  const std::array<uint64_t, 8> anywhere{
      memory, memory + kOffered - 8, memory + kOffered, memory - 8, page, page + kWordsOffered,
      64,     UINT64_MAX - 4};
  const int64_t one_is_wrong = 1 + chance.below(64);
  // A chunk may be used again once this end is done with it: mostly the peer waits for that, as it should.
  size_t asked = 0;
  const auto answers = [&] {
    const auto sent = end.wire->messages();
    return static_cast<size_t>(std::count_if(sent.begin(), sent.end(), [](const Message& message) {
      return message.kind == Message::kTaken || message.kind == Message::kFilled;
    }));
  };
  for (int i = 0; i < kMessages && !end.transport->failure(); ++i) {
    if (chance.once_in(one_is_wrong)) {
      end.wire->put(chance.once_in(2) ? beyond_the_end(chance, memory, page)
                                      : damaged(chance, encode(random_message(chance, anywhere))));
      continue;
    }
    const Range offered{memory + static_cast<uint64_t>(chance.below(kOffered - kChunk)),
                        static_cast<uint64_t>(1 + chance.below(kChunk / 2))};
    const uint64_t word = page + 8 * static_cast<uint64_t>(chance.below(kWordsOffered / 8));
    const uint64_t kind = chance.next() % 16;
    if (kind < 2) {
      end.wire->put(encode(ranges(kind == 0 ? Message::kFetch : Message::kScatter, 0, {offered})));
      ++asked;
      if (!chance.once_in(16)) CHECK(becomes([&] { return answers() >= asked || end.transport->failure(); }));
    } else if (kind == 2) {
      end.wire->put(encode(ranges(Message::kReach, static_cast<uint32_t>(chance.below(2)), {})));
    } else {
      end.wire->put(encode(Message{Message::kWords, 0, {}, {{word, chance.next()}}}));
    }
  }
  end.wire->put("");  // ends every link, so one that does not end has stopped to listen

  CHECK(becomes([&] { return end.transport->failure().has_value(); }));
  CHECK(end.transport->failure()->find("cluster 9") != std::string::npos);
  end.transport.reset();
  DATADIST_ACL(aclrtSynchronizeDevice());
  CHECK(!has_told);
  CHECK(is_untouched(end.memory, kOffered, kBytes));
  CHECK(is_untouched(end.page, kWordsOffered, kPageBytes));
  return end.wire->received;
}

}  // namespace

Tried try_case(uint64_t seed) {
  Chance chance(seed);
  try {
    const std::array<uint64_t, 8> addresses{kPeerMemory, 0, 64, 8, UINT64_MAX, UINT64_MAX - 4, 4096, 1};
    for (int i = 0; i < kTexts; ++i) {
      read(damaged(chance, chance.once_in(3) ? encode(random_address(chance))
                                             : encode(random_message(chance, addresses))));
    }
    return {kTexts, try_link(chance)};
  } catch (const check::Failure& failure) {
    throw check::Failure("seed " + std::to_string(seed) + ": " + failure.what());
  }
}

}  // namespace datadist::message_oracle
