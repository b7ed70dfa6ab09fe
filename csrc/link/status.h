// The hidden sticky word behind a caller's `status` tensor: the first error stays, and a stream that copies
// it after a release finds it, since the watchdog writes the error first.
#pragma once

#include <algorithm>
#include <array>
#include <mutex>
#include <optional>

#include "error.h"
#include "link/tick.h"

namespace datadist {

class Status {
 public:
  // A word of the pool, which goes back to it.
  Status(WordPool* pool, Word word) : pool_(pool), words_{word, Word()} {}
  // Two words of somebody else, who calls `detach` before they serve another purpose.
  Status(Word one, Word other) : words_{one, other} {}
  ~Status() {
    if (pool_ != nullptr) pool_->give_back(words_.front());
  }
  Status(const Status&) = delete;
  Status& operator=(const Status&) = delete;

  char* address() const { return words_.front().address; }
  int64_t code() const {
    std::lock_guard lock(mutex_);
    return code_;
  }

  // Watchdog only. Counts as set when the writes were accepted, so that a refused one is tried again at the
  // next tick.
  void set(const Tick& tick, int64_t code) {
    std::lock_guard lock(mutex_);
    if (code_ != kSuccess) return;
    if (!is_detached_) {
      for (const Word& word : words_) {
        if (word.address != nullptr) tick.write(word, static_cast<uint32_t>(status_value(code)));
      }
    }
    code_ = code;
  }
  // Watchdog only. Whether any stream that copies it from now on finds the error: the write that `set` queued
  // is done, as the last tick saw it.
  bool is_there() const {
    std::lock_guard lock(mutex_);
    return is_detached_ || std::all_of(words_.begin(), words_.end(), [](const Word& word) {
             return word.address == nullptr || word.seen() != 0;
           });
  }
  void detach() {
    std::lock_guard lock(mutex_);
    is_detached_ = true;
  }

 private:
  WordPool* const pool_ = nullptr;
  const std::array<Word, 2> words_;  // the second is empty where there is one only
  mutable std::mutex mutex_;
  bool is_detached_ = false;
  int64_t code_ = kSuccess;
};

}  // namespace datadist
