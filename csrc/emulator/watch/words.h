#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <utility>
#include <vector>

#include "emulator/watch/clock.h"

namespace emu::watch {

// 64-bit words by which streams tell each other something. A word that a value write or a value wait names is
// one; what 8-byte copies wrote before is remembered in case it becomes one.
class Words {
 public:
  struct Write {
    std::optional<uint64_t> value;  // none: unknown, may be anything
    Clock clock;
  };
  struct Word {
    bool is_sync = false;
    std::deque<Write> writes;  // the last ones, oldest first
  };

  Word& at(uint64_t file, uint64_t offset) { return words_[{file, offset}]; }
  const Word* find(uint64_t file, uint64_t offset) const;
  void write(Word& word, std::optional<uint64_t> value, const Clock& clock);
  // The write that let a wait for `value` go on: the first of the last row of writes that satisfy it. What
  // came after it may as well not have happened yet. Null when none of them does.
  static const Write* satisfied_by(const Word& word, uint64_t value, uint32_t mode);
  // The sync words in a range, in order.
  template <class Visit>
  void each_sync(uint64_t file, uint64_t begin, uint64_t end, Visit&& visit) {
    for (auto it = words_.lower_bound({file, begin}); it != words_.end(); ++it) {
      if (it->first.first != file || it->first.second >= end) break;
      if (it->second.is_sync) visit(it->first.second, it->second);
    }
  }
  void forget(uint64_t file, uint64_t begin, uint64_t end);

 private:
  static constexpr size_t kRemembered = 32;

  std::map<std::pair<uint64_t, uint64_t>, Word> words_;
};

}  // namespace emu::watch
