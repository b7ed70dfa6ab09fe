// The hidden sticky word behind a caller's `status` tensor: the first error stays, and a stream that copies
// it after a release finds it, since the watchdog writes the error first.
#pragma once

#include <atomic>
#include <cstdint>

#include "error.h"
#include "link/tick.h"

namespace datadist {

class Status {
 public:
  explicit Status(WordPool* words) : words_(words), word_(words->take()) {}
  ~Status() { words_->give_back(word_); }
  Status(const Status&) = delete;
  Status& operator=(const Status&) = delete;

  char* address() const { return word_.address; }
  bool is_set() const { return code_.load() != kSuccess; }
  int64_t code() const { return code_.load(); }  // for a host, which cannot read the word

  // Watchdog only. Counts as set when the write was accepted, so that a refused one is tried again at the
  // next tick.
  void set(const Tick& tick, int64_t code) {
    if (is_set()) return;
    tick.write(word_, static_cast<uint32_t>(status_value(code)));
    code_.store(code);
  }

 private:
  WordPool* const words_;
  const Word word_;
  std::atomic<int64_t> code_{kSuccess};
};

}  // namespace datadist
