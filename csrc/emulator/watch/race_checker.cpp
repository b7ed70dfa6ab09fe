#include "emulator/watch/race_checker.h"

#include <execinfo.h>
#include <fcntl.h>
#include <pthread.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "emulator/block.h"
#include "emulator/context.h"
#include "emulator/device.h"
#include "emulator/emu.h"
#include "emulator/error.h"
#include "emulator/stream.h"
#include "emulator/watch/settings.h"

namespace emu::watch {
namespace {

// The exit status of a process that found races and was asked to fail.
constexpr int kExitStatus = 86;
constexpr size_t kMostFindings = 1000;
constexpr size_t kFrames = 24;

std::atomic<RaceChecker*> the_checker{nullptr};

std::string thread_name() {
  char name[32] = "";
  pthread_getname_np(pthread_self(), name, sizeof name);
  return name;
}

Spot spot_of_word(uintptr_t address) {
  Spot found;
  Places::each({address, sizeof(uint64_t)}, [&](const Spot& spot) { found = spot; });
  return found;
}

// Where the reports of many processes come together. One write each: none is cut in two by another's.
void write_down(const std::string& report) {
  const char* path = setting("TORCH_LLM_DATADIST_EMULATE_RACE_REPORTS");
  if (path == nullptr) return;
  const int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
  const std::string line = text("process %d, %s\n", getpid(), report.c_str());
  if (fd < 0 || write(fd, line.data(), line.size()) != static_cast<ssize_t>(line.size())) {
    std::fprintf(stderr, "emulated Ascend runtime: '%s' cannot be written: %s\n", path, std::strerror(errno));
  }
  if (fd >= 0) close(fd);
}

uint64_t load(const std::byte* word) {
  return std::atomic_ref(*reinterpret_cast<uint64_t*>(const_cast<std::byte*>(word)))
      .load(std::memory_order_acquire);
}

}  // namespace

RaceChecker* race_checker() { return the_checker.load(); }

std::unique_ptr<Observer> race_checker_of_environment() {
  const char* asked = setting("TORCH_LLM_DATADIST_EMULATE_RACES");
  if (asked == nullptr) return nullptr;
  const char* stacks = setting("TORCH_LLM_DATADIST_EMULATE_STACKS");
  auto checker = std::make_unique<RaceChecker>(std::strcmp(asked, "fail") == 0, stacks != nullptr);
  the_checker.store(checker.get());
  return checker;
}

RaceChecker::Line& RaceChecker::line(Stream& stream) {
  auto [it, fresh] = lines_.try_emplace(&stream);
  if (fresh) {
    if (free_lines_.empty()) {
      it->second.clock = Clock(lines_used_++);
    } else {
      it->second.clock = Clock::next_on(free_lines_.back());
      free_lines_.pop_back();
    }
    it->second.ended = it->second.clock;
  }
  return it->second;
}

OriginPtr RaceChecker::origin_of(const Stream* stream, const char* name, uint64_t number) const {
  auto origin = std::make_shared<Origin>();
  origin->name = name;
  origin->number = number;
  origin->thread = thread_name();
  if (stream != nullptr) {
    origin->stream = stream->id;
    origin->device = stream->context().device.id;
  }
  if (keeps_stacks_) {
    std::vector<void*> frames(kFrames);
    frames.resize(static_cast<size_t>(backtrace(frames.data(), kFrames)));
    origin->frames = std::make_shared<const std::vector<void*>>(std::move(frames));
  }
  return origin;
}

void RaceChecker::submitted(Stream& stream, const Task& task, uint64_t number) {
  auto origin = origin_of(&stream, task.what, number);
  std::lock_guard lock(mutex_);
  // A worker submits for the task that it runs (the lanes of a replay), not for the host.
  Stream* submitter = Stream::running();
  const Clock past = submitter != nullptr ? line(*submitter).clock : host_;
  line(stream).queue.push_back({number, past, std::move(origin)});
}

void RaceChecker::taken(Stream& stream, const Task& task, uint64_t number) {
  std::lock_guard lock(mutex_);
  Line& on = line(stream);
  on.origin = nullptr;
  while (!on.queue.empty() && on.queue.front().number <= number) {
    on.clock.join(on.queue.front().past);
    on.origin = std::move(on.queue.front().origin);
    on.queue.pop_front();
  }
  if (on.origin != nullptr) return;
  on.clock.join(host_);  // submitted before anybody watched
  on.origin = origin_of(&stream, task.what, number);
}

void RaceChecker::dropped(Stream& stream, const Task&, uint64_t number) {
  std::lock_guard lock(mutex_);
  auto& queue = line(stream).queue;
  while (!queue.empty() && queue.front().number <= number) queue.pop_front();
}

// What a task tells others is told as it begins, what it learns is learnt as it ends: between the two lies
// the moment when it happens.
void RaceChecker::begun(Stream& stream, const Task&, const TaskFacts& facts) {
  std::lock_guard lock(mutex_);
  Line& on = line(stream);
  on.clock.advance();
  OriginPtr origin = on.origin;
  if (origin == nullptr || std::strcmp(origin->name, facts.name) != 0 || !facts.notes.empty()) {
    auto own = std::make_shared<Origin>(origin == nullptr ? Origin{} : *origin);
    own->name = facts.name;
    own->notes = facts.notes;
    origin = std::move(own);
  }
  touch(facts, on.clock, origin);
  switch (facts.kind) {
    case TaskKind::EventRecord: {
      Note& records = note(*facts.sync);
      records.records.clear();
      records.records.push_back(on.clock);
      break;
    }
    case TaskKind::NotifyRecord:
      note(*facts.sync).records.push_back(on.clock);
      break;
    case TaskKind::HostFunction:
      host_.join(on.clock);
      break;
    default:
      break;
  }
}

void RaceChecker::ended(Stream& stream, const Task&, const TaskFacts& facts, aclError code) {
  std::lock_guard lock(mutex_);
  Line& on = line(stream);
  if (code == ACL_SUCCESS) {
    learn_from_words(facts, on.clock);  // once more: it may have read what was written meanwhile
    switch (facts.kind) {
      case TaskKind::ValueWait:
        value_wait_ended(facts, on.clock);
        break;
      case TaskKind::EventWait:
      case TaskKind::NotifyWait: {
        Note& records = note(*facts.sync);
        if (records.records.empty()) {
          join_all_ended(on.clock);
          break;
        }
        on.clock.join(records.records.front());
        if (facts.kind == TaskKind::NotifyWait) records.records.clear();
        break;
      }
      case TaskKind::HostFunction:
        on.clock.join(host_);
        break;
      default:
        break;
    }
  }
  on.ended = on.clock;
  if (tells_others(facts)) host_.join(on.clock);
}

void RaceChecker::learn_from_words(const TaskFacts& facts, Clock& clock) {
  for (const Range& range : facts.reads) {
    Places::each(range, [&](const Spot& spot) {
      words_.each_sync(spot.file, spot.begin, spot.end, [&](uint64_t, const Words::Word& word) {
        for (const Words::Write& write : word.writes) clock.join(write.clock);
      });
    });
  }
}

void RaceChecker::touch(const TaskFacts& facts, Clock& clock, const OriginPtr& origin) {
  learn_from_words(facts, clock);
  for (const Range& range : facts.reads) {
    Places::each(range, [&](const Spot& spot) { touch_data(spot, false, clock, origin); });
  }
  for (const Range& range : facts.writes) {
    Places::each(range, [&](const Spot& spot) { touch_data(spot, true, clock, origin); });
  }
  write_words(facts, clock);
}

void RaceChecker::touch_data(const Spot& spot, bool writes, const Clock& clock, const OriginPtr& origin) {
  const Access access{clock.line(), clock.at(), origin};
  auto found = [&](const Shadow::Conflict& conflict) { report(spot.file, conflict, access, writes); };
  auto piece = [&](uint64_t begin, uint64_t end) {
    if (begin >= end) return;
    if (writes) {
      shadow_.write(spot.file, begin, end, access, clock, found);
    } else {
      shadow_.read(spot.file, begin, end, access, clock, found);
    }
  };
  uint64_t next = spot.begin;
  words_.each_sync(spot.file, spot.begin & ~uint64_t{7}, spot.end, [&](uint64_t at, const Words::Word&) {
    piece(next, at);
    next = std::max(next, at + sizeof(uint64_t));
  });
  piece(next, spot.end);
}

void RaceChecker::write_words(const TaskFacts& facts, const Clock& clock) {
  if (facts.kind == TaskKind::ValueWrite) {
    const Spot spot = spot_of_word(facts.word);
    if (spot.end != 0) words_.write(sync_word(spot), facts.value, clock);
    return;
  }
  // A copy of one word is how flags are written where a value write is refused.
  const bool is_word = facts.kind == TaskKind::Copy && facts.bytes == sizeof(uint64_t);
  std::optional<uint64_t> value;
  if (is_word) value = Places::word_at(facts.reads);
  if (facts.kind == TaskKind::Fill) value = facts.value;
  for (const Range& range : facts.writes) {
    Places::each(range, [&](const Spot& spot) {
      if (is_word && spot.end - spot.begin == sizeof(uint64_t) && spot.begin % sizeof(uint64_t) == 0) {
        words_.write(words_.at(spot.file, spot.begin), value, clock);
      } else {
        write_words(spot, value, clock);
      }
    });
  }
}

void RaceChecker::write_words(const Spot& spot, std::optional<uint64_t> value, const Clock& clock) {
  words_.each_sync(spot.file, spot.begin, spot.end,
                   [&](uint64_t, Words::Word& word) { words_.write(word, value, clock); });
}

Words::Word& RaceChecker::sync_word(const Spot& spot) {
  Words::Word& word = words_.at(spot.file, spot.begin);
  if (!word.is_sync) {
    word.is_sync = true;
    shadow_.forget(spot.file, spot.begin, spot.begin + sizeof(uint64_t));
  }
  return word;
}

void RaceChecker::value_wait_ended(const TaskFacts& facts, Clock& clock) {
  const Spot spot = spot_of_word(facts.word);
  if (spot.end == 0) return;
  const Words::Word& word = sync_word(spot);
  const Words::Write* write = Words::satisfied_by(word, facts.value, facts.mode);
  // A value that nobody here wrote is another process's, or some kernel's.
  const bool is_shared = Places::is_imported(*spot.block) || Places::is_exported(*spot.block);
  const bool is_ours = write != nullptr && (!is_shared || !write->value || load(spot.host) == *write->value);
  if (is_ours) {
    clock.join(write->clock);
  } else {
    join_all_ended(clock);
  }
}

void RaceChecker::join_all_ended(Clock& clock) {
  for (const auto& [_, other] : lines_) clock.join(other.ended);
  clock.join(host_);
}

// A task that another process may learn of: it may tell our host by a message.
bool RaceChecker::tells_others(const TaskFacts& facts) const {
  bool tells = facts.sync != nullptr && facts.sync->tells_others;
  auto ask = [&](const Spot& spot) { tells |= spot.block != nullptr && Places::is_imported(*spot.block); };
  for (const Range& range : facts.reads) Places::each(range, ask);
  for (const Range& range : facts.writes) Places::each(range, ask);
  if (facts.kind != TaskKind::ValueWrite) return tells;
  Places::each({facts.word, sizeof(uint64_t)}, [&](const Spot& spot) {
    if (spot.block != nullptr) tells |= Places::is_imported(*spot.block) || Places::is_exported(*spot.block);
  });
  return tells;
}

RaceChecker::Note& RaceChecker::note(SyncPoint& point) {
  if (point.note == nullptr) point.note = std::make_shared<Note>();
  return *static_cast<Note*>(point.note.get());
}

void RaceChecker::released(SyncPoint& point, Stream& stream) {
  std::lock_guard lock(mutex_);
  note(point).records.push_back(line(stream).clock);
}

void RaceChecker::acquired(SyncPoint& point, Stream& stream) {
  std::lock_guard lock(mutex_);
  for (const Clock& record : note(point).records) line(stream).clock.join(record);
}

void RaceChecker::restarted(SyncPoint& point) {
  std::lock_guard lock(mutex_);
  note(point).records.clear();
}

void RaceChecker::host_waited(Stream& stream) {
  std::lock_guard lock(mutex_);
  host_.join(line(stream).ended);
}

void RaceChecker::host_saw(SyncPoint& point) {
  std::lock_guard lock(mutex_);
  for (const Clock& record : note(point).records) host_.join(record);
}

void RaceChecker::host_begun(const TaskFacts& facts) {
  auto origin = origin_of(nullptr, facts.name, 0);
  std::lock_guard lock(mutex_);
  host_.advance();
  touch(facts, host_, origin);
}

void RaceChecker::host_ended(const TaskFacts& facts) {
  std::lock_guard lock(mutex_);
  learn_from_words(facts, host_);
}

void RaceChecker::freed(const Block& block) {
  const Spot all = Places::whole(block);
  std::lock_guard lock(mutex_);
  shadow_.forget(all.file, all.begin, all.end);
  words_.forget(all.file, all.begin, all.end);
}

void RaceChecker::host_memory_forgotten(uintptr_t base, size_t size) {
  std::lock_guard lock(mutex_);
  shadow_.forget(0, base, base + size);
}

void RaceChecker::stream_gone(Stream& stream) {
  std::lock_guard lock(mutex_);
  const auto it = lines_.find(&stream);
  if (it == lines_.end()) return;
  free_lines_.push_back(it->second.clock);
  lines_.erase(it);
}

void RaceChecker::report(uint64_t file, const Shadow::Conflict& conflict, const Access& later,
                         bool later_writes) {
  const Origin& first = *conflict.earlier.origin;
  const Origin& second = *later.origin;
  auto one = text("%s %d %d", first.name, first.stream, conflict.earlier_wrote);
  auto other = text("%s %d %d", second.name, second.stream, later_writes);
  if (other < one) std::swap(one, other);
  if (!reported_.insert(one + " / " + other).second || findings_.size() >= kMostFindings) return;
  findings_.push_back(
      text("race %zu: %lu bytes at offset %lu of %s %lu, with nothing that orders\n"
           "    the %s by %s\n    the %s by %s",
           findings_.size() + 1, conflict.end - conflict.begin, conflict.begin,
           file == 0 ? "host memory" : "memory", file, conflict.earlier_wrote ? "write" : "read",
           first.text().c_str(), later_writes ? "write" : "read", second.text().c_str()));
  std::fprintf(stderr, "emulated Ascend runtime: %s\n", findings_.back().c_str());
  write_down(findings_.back());
  observer()->found_race(findings_.back());
}

std::vector<std::string> RaceChecker::findings() const {
  std::lock_guard lock(mutex_);
  return findings_;
}

void RaceChecker::forget_reported() {
  std::lock_guard lock(mutex_);
  reported_.clear();
}

void RaceChecker::flush() {
  const size_t count = findings().size();
  if (count == 0) return;
  std::fprintf(stderr, "emulated Ascend runtime: %zu races were found in this process\n", count);
  if (!fails_) return;
  std::fflush(nullptr);
  std::_Exit(kExitStatus);
}

}  // namespace emu::watch

void emuForgetRaces(void) {
  if (auto* checker = emu::watch::race_checker()) checker->forget_reported();
}

int64_t emuRaces(void) {
  const auto* checker = emu::watch::race_checker();
  return checker == nullptr ? -1 : static_cast<int64_t>(checker->findings().size());
}

size_t emuRaceReport(int64_t index, char* out, size_t size) {
  const auto* checker = emu::watch::race_checker();
  if (checker == nullptr || index < 0) return 0;
  const auto findings = checker->findings();
  if (static_cast<size_t>(index) >= findings.size()) return 0;
  const std::string& report = findings[static_cast<size_t>(index)];
  if (size > 0) {
    const size_t fits = std::min(size - 1, report.size());
    std::memcpy(out, report.data(), fits);
    out[fits] = '\0';
  }
  return report.size();
}
