// Words of device memory, eight bytes each, that streams wait for and write: gates, status words, progress.
// Nobody on the host can look at them; the watchdog copies them all to pinned memory at each of its ticks.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "acl/stream.h"
#include "transport/transport.h"

namespace datadist {

// 0 on the device when taken.
struct Word {
  char* address = nullptr;
  const uint64_t* mirror = nullptr;  // as of the last tick; the watchdog's alone
  uint64_t seen() const { return *mirror; }
};

class WordPool {
 public:
  // `allocate` returns that many zeroed bytes of device memory.
  explicit WordPool(std::function<DeviceMemory(size_t)> allocate) : allocate_(std::move(allocate)) {}

  Word take() { return take(1).front(); }
  std::vector<Word> take(size_t count);
  void take(size_t count, std::vector<Word>* words);  // appends them
  // For who must not wait for an allocator, which may wait for what it is to do: none when there are not as
  // many. Who may wait calls `fill_reserve` before.
  std::vector<Word> take_reserved(size_t count);
  void fill_reserve() {
    if (is_reserve_short_.load(std::memory_order_relaxed)) add_chunk();
  }
  // Whatever streams still write or read the word must have passed. It is zeroed before anybody takes it
  // again.
  void give_back(Word word);

  // The watchdog's three steps of a tick. After `queue_reads` and a sync of that stream the mirrors are
  // fresh; what was given back is zeroed by `queue_zeroes` and taken again only after one more sync, told by
  // `zeroes_done`.
  void queue_reads(aclrtStream stream);
  void queue_zeroes(aclrtStream stream);
  void zeroes_done();

 private:
  static constexpr size_t kWordsPerChunk = 8192;
  static constexpr size_t kReserve = 512;  // no other than `take_reserved` takes the last ones
  struct Chunk {
    DeviceMemory memory;
    std::unique_ptr<acl::PinnedBuffer> mirror;
  };

  void add_chunk();

  std::mutex mutex_;
  std::function<DeviceMemory(size_t)> allocate_;
  std::vector<Chunk> chunks_;
  std::deque<Word> free_;  // first in, first out: a word rests as long as possible
  std::atomic<bool> is_reserve_short_{true};
  std::vector<Word> returned_;
  std::vector<Word> zeroing_;
};

}  // namespace datadist
