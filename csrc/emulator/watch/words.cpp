#include "emulator/watch/words.h"

#include "emulator/value.h"

namespace emu::watch {

const Words::Word* Words::find(uint64_t file, uint64_t offset) const {
  const auto it = words_.find({file, offset});
  return it == words_.end() ? nullptr : &it->second;
}

void Words::write(Word& word, std::optional<uint64_t> value, const Clock& clock) {
  word.writes.push_back({value, clock});
  if (word.writes.size() > kRemembered) word.writes.pop_front();
}

const Words::Write* Words::satisfied_by(const Word& word, uint64_t value, uint32_t mode) {
  const Write* first = nullptr;
  for (auto it = word.writes.rbegin(); it != word.writes.rend(); ++it) {
    const bool holds = !it->value || value_holds(*it->value, value, mode);
    if (holds) first = &*it;
    if (!holds && first != nullptr) break;
  }
  return first;
}

void Words::forget(uint64_t file, uint64_t begin, uint64_t end) {
  words_.erase(words_.lower_bound({file, begin}), words_.lower_bound({file, end}));
}

}  // namespace emu::watch
