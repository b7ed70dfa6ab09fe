// How a host thread waits until a caller's stream has got somewhere, with a deadline and without a call that
// waits for a stream: a word behind what is queued there, and the watchdog that looks at it.
#pragma once

#include <atomic>
#include <condition_variable>
#include <mutex>

#include "link/tick.h"
#include "link/words.h"

namespace datadist {

class StreamMark {
 public:
  explicit StreamMark(WordPool* words) : words_(words), word_(words->take()) {}
  // The watchdog holds it until the stream has passed, or never will.
  ~StreamMark() { words_->give_back(word_); }
  StreamMark(const StreamMark&) = delete;
  StreamMark& operator=(const StreamMark&) = delete;

  char* word() const { return word_.address; }  // a stream writes 1 to it
  void refuse() { is_refused_.store(true); }    // the runtime took no such write
  // False at the deadline. LLM_FAILED when the stream takes nothing any more, or there is no watchdog.
  bool wait_until(Clock::time_point deadline, const char* asked);

  // Watchdog.
  bool tick();  // true once nothing writes the word any more
  void abandon();

 private:
  WordPool* const words_;
  const Word word_;
  std::atomic<bool> is_refused_{false};
  std::mutex mutex_;
  std::condition_variable changed_;
  bool has_passed_ = false;
  bool is_abandoned_ = false;
};

}  // namespace datadist
