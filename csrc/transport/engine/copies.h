// The two streams between the device and the buffers of a transport, and how far each has come. Host
// functions on them count; whoever queued something looks whether the count has passed its own.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

#include "acl/stream.h"
#include "transport/engine/board.h"

namespace datadist::engine {

// Of one thread, which makes it and ends it. Calls throw with the runtime's code.
class Copies {
 public:
  Copies(int device, std::shared_ptr<Board> board);
  ~Copies();  // what is queued does not run any more
  Copies(const Copies&) = delete;
  Copies& operator=(const Copies&) = delete;

  void to_host(char* host, const char* device, size_t bytes);
  void to_device(char* device, const char* host, size_t bytes);
  // Behind what goes to the device.
  void write_word(void* word, uint64_t value);

  // What was queued in that direction so far is done once the mark is passed.
  uint64_t mark_out();
  uint64_t mark_in();
  bool is_out_past(uint64_t mark) const { return calls_->out >= mark; }
  bool is_in_past(uint64_t mark) const { return calls_->in >= mark; }
  bool are_all_past() const { return is_out_past(out_queued_) && is_in_past(in_queued_); }
  void require_well() const;

  // Found by a number, as a host function may come after all else has gone.
  struct Calls {
    std::atomic<uint64_t> out{0};
    std::atomic<uint64_t> in{0};
    std::shared_ptr<Board> board;
  };

 private:
  const std::shared_ptr<Calls> calls_;
  const acl::Context context_;
  const acl::Stream out_;
  const acl::Stream in_;
  const int64_t number_;  // of `calls_`; last, so that what fails before leaves none behind
  uint64_t out_queued_ = 0;
  uint64_t in_queued_ = 0;
};

}  // namespace datadist::engine
