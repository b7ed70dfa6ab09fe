// What runs on a stream of ours: programs, which are sequences of small steps, on lanes, which are a stream
// with a progress word behind every few steps.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "acl/stream.h"
#include "link/arrivals.h"
#include "link/words.h"

namespace datadist {

struct Step {
  enum Kind : uint8_t {
    kWait,         // until the local word at dst reaches value
    kWrite,        // value into the local word at dst
    kCopy,         // value bytes from src to dst, either may be a peer's device memory
    kCopyRows,     // the same for `height` rows of value bytes
    kToHost,       // value bytes of device memory at src to page-locked host memory at dst
    kToDevice,     // and back
    kRemoteWrite,  // value into the peer's word at dst, after what was copied before
    kCall,         // the host function at src with dst as its argument
    kGather,       // the rows of value bytes at src that `ids` names, one behind the other at dst
    kScatter,      // and back, from src to the rows at dst
    kRangeStart,   // of a profiler's timeline, named by the text at src
    kRangeEnd,
    kSettle,  // until the peer has all that was copied and written before
  };
  Kind kind;
  void* dst;
  const void* src;
  uint64_t value;
  // kCopyRows
  size_t height = 1;
  size_t dst_pitch = 0;
  size_t src_pitch = 0;
  // kGather, kScatter: `height` of `rows` rows
  const int64_t* ids = nullptr;
  int64_t rows = 0;
};

// Asked for steps by the feeding thread only.
class Program {
 public:
  virtual ~Program() = default;
  // Before the first step, on the feeding thread. Throws when the program cannot run at all.
  virtual void prepare() {}
  virtual bool next(Step* step) = 0;
  // Called once, when nothing more of it will be queued: all steps are (code 0), or the runtime refused one,
  // or the lane is gone. What was queued is done when the lane has passed `mark`; 0: nothing was.
  virtual void ended(uint64_t mark, int64_t code, const std::string& what) = 0;
};

// What finds a lane for its program when the feeding thread gets to it: handing it over takes no lock.
class Boarding {
 public:
  virtual ~Boarding() = default;
  // Feeding thread; the caller's when the feeder has stopped and there is no lane any more.
  virtual void board() = 0;

 private:
  friend class Feeder;
  Arrivals<Boarding>::Hook at_feeder_;
};

// Owned by its feeder, which alone touches everything below the line.
class Lane {
 public:
  Lane(Word progress, Word outgoing) : progress_(progress), outgoing_(outgoing) {}

  // Watchdog only. True once the steps up to `mark` ran, or the stream is gone and they never will.
  bool has_passed(uint64_t mark) const { return is_dropped() || progress_.seen() >= mark; }
  bool is_dropped() const { return is_dropped_.load(std::memory_order_acquire); }

 private:
  friend class Feeder;
  Word progress_;
  Word outgoing_;  // what its stream may write on the way to a peer's word
  std::atomic<bool> is_dropped_{false};
  std::atomic<uint64_t> seen_mark_{
      0};  // copied from the word's mirror by the watchdog for the feeding thread
  // ------------------------------------------------------------------------------------------------
  std::unique_ptr<acl::Stream> stream_;
  aclrtStream ended_stream_ = nullptr;    // of which a transport may still have something under way
  std::vector<DeviceMemory> workspaces_;  // of its kernels, one of which runs at a time; the last is in use
  uint64_t workspace_bytes_ = 0;
  std::deque<std::unique_ptr<Program>> queue_;
  std::shared_ptr<void> share_;  // of the device's streams, while it has or may need one
  bool head_is_prepared_ = false;
  Step rows_{};  // of a runtime that copies rows one by one: what is copied now, and how far
  size_t row_ = 1;
  std::atomic<bool> must_drop_{false};
  uint64_t range_ = 0;  // that has begun on it and not ended
  uint64_t next_mark_ = 1;
  uint64_t steps_since_mark_ = 0;
  std::atomic<uint64_t> in_queue_{0};                 // entries of the stream's queue not known to be done
  std::deque<std::pair<uint64_t, uint64_t>> unseen_;  // (mark, entries up to it)
};

}  // namespace datadist
