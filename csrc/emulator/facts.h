#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace emu {

enum class Direction : uint8_t;

enum class TaskKind : uint8_t {
  Other,
  Copy,
  Fill,
  ValueWrite,
  ValueWait,
  EventRecord,
  EventWait,
  EventReset,
  NotifyRecord,
  NotifyWait,
  HostFunction,
  Compute,
  Delay,
  Replay,
};
const char* name_of(TaskKind kind);

// `rows` pieces of `width` bytes, `pitch` apart.
struct Range {
  uintptr_t address = 0;
  size_t width = 0;
  size_t rows = 1;
  size_t pitch = 0;

  bool operator==(const Range&) const = default;
};

// Something that one task signals and another waits for: a record of an event, a notify, the lanes of a
// replay. What the race checker knows about it lives as long as it does.
struct SyncPoint {
  // Names it in traces; given out at the first question.
  uint64_t number();

  std::shared_ptr<void> note;  // the race checker's, under its lock
  // Where its state lies, if several processes share it: they have objects of their own for one thing.
  uint64_t shared_file = 0;  // inode of the memfd; 0: not shared
  uint64_t shared_offset = 0;
  bool tells_others = false;              // another process may wait for what is recorded here
  std::atomic<uint64_t> simulated_ns{0};  // when it was signalled last, in simulated time

 private:
  std::atomic<uint64_t> number_{0};
};

uint64_t inode_of(int fd);

// What a task does, for those who watch it from outside (observer.h). Addresses are the device's.
struct TaskFacts {
  TaskKind kind = TaskKind::Other;
  const char* name = "";  // the entry point that asked for it, or the op that is computed
  std::vector<Range> reads;
  std::vector<Range> writes;
  size_t bytes = 0;                    // moved, filled
  std::optional<Direction> direction;  // of a copy
  uintptr_t word = 0;                  // of a value write or wait
  uint64_t value = 0;
  uint32_t mode = 0;
  std::string notes;          // where it was asked for, if the caller says so
  SyncPoint* sync = nullptr;  // of records, waits, notifies; lives while the task does
};

}  // namespace emu
