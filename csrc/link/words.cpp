#include "link/words.h"

#include <algorithm>

#include "acl/check.h"
#include "acl/queue.h"
#include "acl/stream.h"

namespace datadist {

std::vector<Word> WordPool::take(size_t count) {
  std::vector<Word> words;
  take(count, &words);
  return words;
}

void WordPool::take(size_t count, std::vector<Word>* words) {
  const size_t wanted = words->size() + count;
  words->reserve(wanted);
  while (true) {
    {
      std::lock_guard lock(mutex_);
      for (; words->size() < wanted && free_.size() > kReserve; free_.pop_front())
        words->push_back(free_.front());
    }
    if (words->size() == wanted) return;
    add_chunk();
  }
}

std::vector<Word> WordPool::take_reserved(size_t count) {
  std::vector<Word> words;
  words.reserve(count);
  std::lock_guard lock(mutex_);
  if (free_.size() >= count) {
    for (; words.size() < count; free_.pop_front()) words.push_back(free_.front());
  }
  is_reserve_short_ = free_.size() < kReserve;
  return words;
}

// Without the lock: an allocator that is short of memory waits for streams, which may wait for the watchdog,
// which takes the lock at each tick.
void WordPool::add_chunk() {
  const size_t bytes = kWordsPerChunk * sizeof(uint64_t);
  Chunk chunk{allocate_(bytes), std::make_unique<acl::PinnedBuffer>(bytes)};
  auto* mirror = chunk.mirror->as<uint64_t>();
  std::lock_guard lock(mutex_);
  for (size_t i = 0; i < kWordsPerChunk; ++i) {
    mirror[i] = 0;
    free_.push_back({chunk.memory.address + i * sizeof(uint64_t), mirror + i});
  }
  chunks_.push_back(std::move(chunk));
  is_reserve_short_ = false;
}

void WordPool::give_back(Word word) {
  if (word.address == nullptr) return;
  std::lock_guard lock(mutex_);
  returned_.push_back(word);
}

void WordPool::queue_reads(aclrtStream stream) {
  std::lock_guard lock(mutex_);
  const size_t bytes = kWordsPerChunk * sizeof(uint64_t);
  for (const Chunk& chunk : chunks_) {
    acl::read_rows(chunk.mirror->as<char>(), bytes, chunk.memory.address, bytes, bytes, 1, stream);
  }
}

void WordPool::queue_zeroes(aclrtStream stream) {
  std::lock_guard lock(mutex_);
  // Words that were taken together lie together, so one task zeroes many.
  std::sort(returned_.begin(), returned_.end(),
            [](const Word& one, const Word& other) { return one.address < other.address; });
  for (size_t first = 0, end = 0; first < returned_.size(); first = end) {
    for (end = first + 1; end < returned_.size(); ++end) {
      if (returned_[end].address != returned_[end - 1].address + sizeof(uint64_t)) break;
    }
    DATADIST_ACL(acl::queue_fill(returned_[first].address, 0, (end - first) * sizeof(uint64_t), stream));
  }
  zeroing_.insert(zeroing_.end(), returned_.begin(), returned_.end());
  returned_.clear();
}

void WordPool::zeroes_done() {
  std::lock_guard lock(mutex_);
  // The mirror may be older than the zero: a word that is taken now must not show its former life.
  for (const Word& word : zeroing_) *const_cast<uint64_t*>(word.mirror) = 0;
  free_.insert(free_.end(), zeroing_.begin(), zeroing_.end());
  zeroing_.clear();
}

}  // namespace datadist
