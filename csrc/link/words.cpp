#include "link/words.h"

#include "acl/check.h"
#include "acl/stream.h"
#include "acl/symbols.h"

namespace datadist {

Word WordPool::take_locked() {
  if (free_.empty()) {
    const size_t bytes = kWordsPerChunk * sizeof(uint64_t);
    Chunk chunk{allocate_(bytes), std::make_unique<acl::PinnedBuffer>(bytes)};
    auto* mirror = chunk.mirror->as<uint64_t>();
    for (size_t i = 0; i < kWordsPerChunk; ++i) {
      mirror[i] = 0;
      free_.push_back({chunk.memory.address + i * sizeof(uint64_t), mirror + i});
    }
    chunks_.push_back(std::move(chunk));
  }
  const Word word = free_.front();
  free_.pop_front();
  return word;
}

Word WordPool::take() {
  std::lock_guard lock(mutex_);
  return take_locked();
}

std::vector<Word> WordPool::take(size_t count) {
  std::lock_guard lock(mutex_);
  std::vector<Word> words;
  words.reserve(count);
  for (size_t i = 0; i < count; ++i) words.push_back(take_locked());
  return words;
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
  for (const Word& word : returned_) DATADIST_ACL(acl::symbols().aclrtValueWrite(word.address, 0, 0, stream));
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
