// What a peer could say through an engine, a seed at a time.
#pragma once

#include <cstdint>

namespace datadist::message_oracle {

constexpr int kTexts = 1000;

struct Tried {
  int texts = 0;     // to the decoders
  int messages = 0;  // to the end of a link, until one ended it
};

// kTexts texts to the decoders, and a link whose peer says what it should not. Throws check::Failure when a
// text is taken for what it is not, when the link goes on or gives no reason, and when memory that was not
// offered is written or sent.
Tried try_case(uint64_t seed);

}  // namespace datadist::message_oracle
