#include "emulator/lazy.h"

#include <algorithm>

#include "emulator/facts.h"
#include "emulator/ipc_memory.h"
#include "emulator/runtime.h"
#include "emulator/stream.h"
#include "emulator/virtual_memory.h"

namespace emu::lazy {

bool is_on() {
  static const bool on = Runtime::get().config.lazy;
  return on;
}

bool is_for_peers(const TaskFacts& facts) {
  const Runtime& runtime = Runtime::get();
  if (facts.kind == TaskKind::NotifyRecord) return true;
  if (facts.kind == TaskKind::EventRecord) return facts.sync != nullptr && facts.sync->shared_file != 0;
  if (facts.kind == TaskKind::ValueWrite) {
    const auto block = runtime.memory.find(facts.word);
    if (block == nullptr) return false;
    const bool exported =
        block->physical != nullptr ? block->physical->exported.load() : runtime.exports->has(block->base);
    return block->import != nullptr || exported;
  }
  return std::any_of(facts.writes.begin(), facts.writes.end(), [&](const Range& range) {
    const auto block = runtime.memory.find(range.address);
    return block != nullptr && block->import != nullptr;
  });
}

bool need_writers_of(uintptr_t word, const Stream& waiting) {
  bool are_queued = false;
  for (const auto& stream : Runtime::get().streams.all()) {
    if (stream.get() != &waiting && stream->need_writers_of(word)) are_queued = true;
  }
  return are_queued;
}

void need_everything() {
  for (const auto& stream : Runtime::get().streams.all()) stream->need_all();
}

}  // namespace emu::lazy
