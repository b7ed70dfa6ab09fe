// What the watchdog hands round at each of its ticks.
#pragma once

#include <chrono>

#include "acl/check.h"
#include "acl/queue.h"
#include "link/words.h"

namespace datadist {

using Clock = std::chrono::steady_clock;

struct Tick {
  Clock::time_point now;
  aclrtStream local;  // writes to our own memory, in order; touches nothing else
  aclrtStream mail;   // writes to peers; a failing one never blurs the local stream
  char* mail_word;    // for that stream alone, on the way

  void write(const Word& word, uint64_t value) const { write(word.address, value); }
  void write(char* address, uint64_t value) const { DATADIST_ACL(acl::queue_write(address, value, local)); }
};

}  // namespace datadist
