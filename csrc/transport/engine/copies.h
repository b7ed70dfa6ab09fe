// The two streams between the device and the buffers of a transport, and how far each has come. Their thread
// asks events for that, as it looks at the engine all the time anyway: to be told would take a thread of the
// runtime and a wake-up for each buffer.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "acl/stream.h"

namespace datadist::engine {

// Of one thread, which makes it and ends it. Calls throw with the runtime's code.
class Copies {
 public:
  explicit Copies(int device);  // what is queued does not run any more once it is gone
  Copies(const Copies&) = delete;
  Copies& operator=(const Copies&) = delete;

  void to_host(char* host, const char* device, size_t bytes);
  void to_device(char* device, const char* host, size_t bytes);
  // Behind what goes to the device.
  void write_word(void* word, uint64_t value);

  // What was queued in that direction so far is done once the mark is passed.
  uint64_t mark_out() { return out_.mark(); }
  uint64_t mark_in() { return in_.mark(); }
  bool is_out_past(uint64_t mark) const { return out_.passed >= mark; }
  bool is_in_past(uint64_t mark) const { return in_.passed >= mark; }
  bool are_all_past() const { return out_.pending.empty() && in_.pending.empty(); }
  // Asks the device; the marks are as of the latest look.
  void look();
  void require_well() const;

 private:
  struct Direction {
    explicit Direction(const acl::Context& context) : stream(context, acl::OnFailure::kStop) {}
    uint64_t mark();
    void look();

    std::deque<std::unique_ptr<acl::Event>> pending;  // the last one is of the latest mark
    std::vector<std::unique_ptr<acl::Event>> spare;
    uint64_t passed = 0;
    const acl::Stream stream;  // ends before its events
  };

  const acl::Context context_;
  Direction out_;
  Direction in_;
};

}  // namespace datadist::engine
