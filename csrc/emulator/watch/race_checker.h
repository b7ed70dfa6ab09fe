#pragma once

#include <deque>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "emulator/observer.h"
#include "emulator/watch/clock.h"
#include "emulator/watch/origin.h"
#include "emulator/watch/places.h"
#include "emulator/watch/shadow.h"
#include "emulator/watch/words.h"

namespace emu::watch {

// Finds two tasks that touch the same bytes, one of them writing, with no order between them: by what they
// waited for, not by when they ran. Each stream is a time line, and the host is one.
//
//   a task comes after          the task before it on its stream; all that the host had waited for when it
//   was
//                               submitted
//   an event's or notify's wait after the record
//   a value wait                after the write that satisfied it
//   a copy of a waited-on word  after all writes of the word that began before the copy ended
//   a replay                    after its stream; its stream goes on after all its lanes
//   the host                    after a sync, a query that said complete, a host function that ran
//
// All host threads count as one, in real time: locks and messages between them are not seen. What another
// process does is not seen either: whatever it can have told us about is taken as told.
class RaceChecker final : public Observer {
 public:
  RaceChecker(bool fails, bool keeps_stacks) : fails_(fails), keeps_stacks_(keeps_stacks) {}

  void submitted(Stream& stream, const Task& task, uint64_t number) override;
  void taken(Stream& stream, const Task& task, uint64_t number) override;
  void dropped(Stream& stream, const Task& task, uint64_t number) override;
  void begun(Stream& stream, const Task& task, const TaskFacts& facts) override;
  void ended(Stream& stream, const Task& task, const TaskFacts& facts, aclError code) override;
  void released(SyncPoint& point, Stream& stream) override;
  void acquired(SyncPoint& point, Stream& stream) override;
  void restarted(SyncPoint& point) override;
  void host_waited(Stream& stream) override;
  void host_saw(SyncPoint& point) override;
  void host_begun(const TaskFacts& facts) override;
  void host_ended(const TaskFacts& facts) override;
  void freed(const Block& block) override;
  void host_memory_forgotten(uintptr_t base, size_t size) override;
  void stream_gone(Stream& stream) override;
  void flush() override;

  std::vector<std::string> findings() const;
  void forget_reported();  // the same pairs are news again

 private:
  struct Submitted {
    uint64_t number;
    Clock past;
    OriginPtr origin;
  };
  struct Line {
    Clock clock;
    Clock ended;  // the clock when the last task that ended did
    std::deque<Submitted> queue;
    OriginPtr origin;  // of the running task
  };
  // What a sync point keeps: the records that no wait consumed yet, oldest first.
  struct Note {
    std::deque<Clock> records;
  };

  Line& line(Stream& stream);
  OriginPtr origin_of(const Stream* stream, const char* name, uint64_t number) const;
  // What is read of sync words may be their last value, or any before it.
  void learn_from_words(const TaskFacts& facts, Clock& clock);
  // Checks and remembers what a task touches.
  void touch(const TaskFacts& facts, Clock& clock, const OriginPtr& origin);
  void touch_data(const Spot& spot, bool writes, const Clock& clock, const OriginPtr& origin);
  void write_words(const TaskFacts& facts, const Clock& clock);
  void write_words(const Spot& spot, std::optional<uint64_t> value, const Clock& clock);
  Words::Word& sync_word(const Spot& spot);
  void value_wait_ended(const TaskFacts& facts, Clock& clock);
  // Something happened that we cannot see into: all that has ended may have been waited for.
  void join_all_ended(Clock& clock);
  bool tells_others(const TaskFacts& facts) const;
  static Note& note(SyncPoint& point);
  void report(uint64_t file, const Shadow::Conflict& conflict, const Access& later, bool later_writes);

  const bool fails_;
  const bool keeps_stacks_;
  mutable std::mutex mutex_;
  Clock host_{0};
  uint32_t lines_used_ = 1;
  std::vector<Clock> free_lines_;
  std::unordered_map<const Stream*, Line> lines_;
  Words words_;
  Shadow shadow_;
  std::set<std::string> reported_;
  std::vector<std::string> findings_;
};

// The one of this process; null: not asked for.
RaceChecker* race_checker();
std::unique_ptr<Observer> race_checker_of_environment();

}  // namespace emu::watch
