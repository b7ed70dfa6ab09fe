#include "link/stream_mark.h"

#include "error.h"
#include "messages/messages.h"

namespace datadist {

bool StreamMark::wait_until(Clock::time_point deadline, const char* asked) {
  std::unique_lock lock(mutex_);
  changed_.wait_until(lock, deadline, [this] { return has_passed_ || is_abandoned_; });
  if (!(!is_abandoned_ && !is_refused_.load()))
    datadist::refuse(Message::stream_takes_nothing, {{"asked", asked}, {"value", "the current stream"}});
  return has_passed_;
}

bool StreamMark::tick() {
  std::lock_guard lock(mutex_);
  if (word_.seen() == 0 && !is_refused_.load()) return false;
  has_passed_ = true;
  changed_.notify_all();
  return true;
}

void StreamMark::abandon() {
  std::lock_guard lock(mutex_);
  is_abandoned_ = true;
  changed_.notify_all();
}

}  // namespace datadist
