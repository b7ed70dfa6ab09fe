#include "emulator/watch/trace.h"

#include <fcntl.h>
#include <pthread.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <thread>

#include "emulator/block.h"
#include "emulator/context.h"
#include "emulator/copy.h"
#include "emulator/device.h"
#include "emulator/emu.h"
#include "emulator/error.h"
#include "emulator/ipc_memory.h"
#include "emulator/stream.h"
#include "emulator/watch/places.h"
#include "emulator/watch/settings.h"

namespace emu::watch {
namespace {

constexpr size_t kMostWaiting = size_t{1} << 16;
constexpr auto kEvery = std::chrono::milliseconds(10);
constexpr uint64_t kStreamTracks = 1'000'000'000;  // above all thread ids
// A range list of a task that touches more pieces ends here, and says so.
constexpr size_t kMostPieces = 4096;

std::atomic<Trace*> the_trace{nullptr};

// The same clock in all processes of a host.
uint64_t now_ns() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(now.tv_nsec);
}

std::string quoted(const std::string& plain) {
  std::string out = "\"";
  for (const char c : plain) {
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (c == '\n') {
      out += "\\n";
    } else if (static_cast<unsigned char>(c) < ' ') {
      out += ' ';
    } else {
      out += c;
    }
  }
  return out + '"';
}

std::string spot_text(const Spot& spot) {
  return text("[%" PRIu64 ",%" PRIu64 ",%" PRIu64 "]", spot.file, spot.begin, spot.end);
}

// Neighbours become one.
std::string ranges_text(const std::vector<Range>& ranges, int32_t& peer) {
  std::vector<Spot> spots;
  for (const Range& range : ranges) {
    Places::each(range, [&](const Spot& spot) {
      if (spot.block != nullptr && spot.block->import != nullptr) peer = spot.block->import->exporter_pid();
      if (!spots.empty() && spots.back().file == spot.file && spots.back().end == spot.begin) {
        spots.back().end = spot.end;
      } else if (spots.size() < kMostPieces) {
        spots.push_back({spot.file, spot.begin, spot.end, nullptr, nullptr});
      }
    });
  }
  std::string out = "[";
  for (const Spot& spot : spots) {
    if (out.size() > 1) out += ",";
    out += spot_text(spot);
  }
  return out + "]";
}

const char* name_of(Direction direction) {
  switch (direction) {
    case Direction::H2D:
      return "host to device";
    case Direction::D2H:
      return "device to host";
    case Direction::D2D:
      return "within a device";
    case Direction::Peer:
      return "to or from a peer";
    default:
      return "within the host";
  }
}

thread_local uint64_t call_began = 0;
thread_local uint64_t task_began = 0;
thread_local std::string task_text;
thread_local uint64_t work_began = 0;

}  // namespace

std::unique_ptr<Observer> trace_of_environment() {
  const char* directory = setting("TORCH_LLM_DATADIST_EMULATE_TRACE");
  if (directory == nullptr) return nullptr;
  auto trace = std::make_unique<Trace>(directory);
  the_trace.store(trace.get());
  return trace;
}

Trace::Trace(std::string directory) : directory_(std::move(directory)) {
  pthread_atfork([] { the_trace.load()->mutex_.lock(); }, [] { the_trace.load()->mutex_.unlock(); },
                 [] { the_trace.load()->after_fork(); });
}

void Trace::after_fork() {
  waiting_.clear();
  named_.clear();
  if (fd_ >= 0) close(fd_);
  fd_ = -1;
  mutex_.unlock();
}

void Trace::open() {
  if (fd_ != -1) return;
  mkdir(directory_.c_str(), 0777);
  const std::string path = text("%s/trace.%d.json", directory_.c_str(), getpid());
  fd_ = ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (fd_ < 0) {
    std::fprintf(stderr, "emulated Ascend runtime: no trace: '%s' cannot be written: %s\n", path.c_str(),
                 std::strerror(errno));
    fd_ = -2;
    return;
  }
  static_cast<void>(!write(fd_, "[\n", 2));
  const std::string process = text("process %d", getpid());
  waiting_.push_back({'M', "", "process_name", 0, 0, 0, 0, "\"name\":" + quoted(process)});
  std::thread([this] { write_loop(); }).detach();
}

void Trace::write_loop() {
  pthread_setname_np(pthread_self(), "emu-trace");
  for (;;) {
    std::vector<Entry> entries;
    {
      std::unique_lock lock(mutex_);
      full_.wait_for(lock, kEvery, [&] { return waiting_.size() > kMostWaiting / 2; });
    }
    flush();
  }
}

void Trace::flush() {
  std::lock_guard one_writer(write_mutex_);
  std::vector<Entry> entries;
  {
    std::lock_guard lock(mutex_);
    if (fd_ < 0) return;
    entries.swap(waiting_);
    room_.notify_all();
  }
  if (!entries.empty()) write_out(std::move(entries));
}

void Trace::write_out(std::vector<Entry> entries) {
  std::string out;
  const int pid = getpid();
  for (const Entry& entry : entries) {
    const std::string name = quoted(entry.name);
    out += text("{\"ph\":\"%c\",\"pid\":%d,\"tid\":%" PRIu64 ",\"name\":%s", entry.phase, pid, entry.track,
                name.c_str());
    if (entry.phase != 'M') {
      out += text(",\"cat\":\"%s\",\"ts\":%" PRIu64 ".%03u", entry.category, entry.begin_ns / 1000,
                  static_cast<unsigned>(entry.begin_ns % 1000));
    }
    if (entry.phase == 'X') {
      const uint64_t lasted = entry.end_ns - entry.begin_ns;
      out += text(",\"dur\":%" PRIu64 ".%03u", lasted / 1000, static_cast<unsigned>(lasted % 1000));
    }
    if (entry.phase == 'i') out += ",\"s\":\"t\"";
    if (entry.phase == 's' || entry.phase == 'f') out += text(",\"id\":%" PRIu64, entry.flow);
    if (entry.phase == 'f') out += ",\"bp\":\"e\"";
    if (!entry.args.empty()) {
      out += ",\"args\":{";
      out += entry.args;
      out += "}";
    }
    out += "},\n";
  }
  for (size_t done = 0; done < out.size();) {
    const ssize_t wrote = write(fd_, out.data() + done, out.size() - done);
    if (wrote < 0 && errno == EINTR) continue;
    if (wrote <= 0) return;  // a full disk must not stop the program that is watched
    done += static_cast<size_t>(wrote);
  }
}

void Trace::add(Entry entry) {
  std::unique_lock lock(mutex_);
  open();
  if (fd_ < 0) return;
  if (waiting_.size() >= kMostWaiting / 2) full_.notify_one();
  room_.wait(lock, [&] { return waiting_.size() < kMostWaiting; });
  waiting_.push_back(std::move(entry));
}

void Trace::add_now(const char* category, const char* name, uint64_t track, std::string args) {
  const uint64_t now = now_ns();
  args += text("%s\"at\":%" PRIu64, args.empty() ? "" : ",", now);
  add({'i', category, name, track, now, now, 0, std::move(args)});
}

uint64_t Trace::host_track() {
  const auto track = static_cast<uint64_t>(gettid());
  bool is_new = false;
  {
    std::lock_guard lock(mutex_);
    is_new = named_.try_emplace(track, true).second;
  }
  if (is_new) {
    char name[32] = "";
    pthread_getname_np(pthread_self(), name, sizeof name);
    add({'M', "", "thread_name", track, 0, 0, 0, "\"name\":" + quoted(text("thread %s", name))});
  }
  return track;
}

uint64_t Trace::track_of(const Stream& stream) {
  const uint64_t track = kStreamTracks + static_cast<uint64_t>(stream.id);
  bool is_new = false;
  {
    std::lock_guard lock(mutex_);
    is_new = named_.try_emplace(track, true).second;
  }
  if (is_new) {
    const auto name = text("device %d stream %d", stream.context().device.id, stream.id);
    add({'M', "", "thread_name", track, 0, 0, 0, "\"name\":" + quoted(name)});
  }
  return track;
}

void Trace::call_begun(const char*) { call_began = now_ns(); }

void Trace::call_ended(const char* name, aclError code) {
  add({'X', "call", name, host_track(), call_began, now_ns(), 0, text("\"code\":%d", code)});
}

namespace {

uint64_t flow_of_task(const Stream& stream, uint64_t number) {
  return uint64_t{1} << 63 | static_cast<uint64_t>(stream.id) << 40 | (number & 0xFF'FFFF'FFFF);
}

}  // namespace

void Trace::submitted(Stream& stream, const Task& task, uint64_t number) {
  Stream* submitter = Stream::running();
  const uint64_t now = now_ns();
  const uint64_t from = submitter == nullptr ? host_track() : track_of(*submitter);
  {
    std::lock_guard lock(mutex_);
    lines_[&stream].queue.push_back({number, now, submitter == nullptr ? -1 : submitter->id});
  }
  add({'s', "submit", task.what, from, now, now, flow_of_task(stream, number), ""});
}

void Trace::taken(Stream& stream, const Task&, uint64_t number) {
  std::lock_guard lock(mutex_);
  Line& line = lines_[&stream];
  line.running = {number, 0, -1};
  while (!line.queue.empty() && line.queue.front().number <= number) {
    line.running = line.queue.front();
    line.queue.erase(line.queue.begin());
  }
}

void Trace::dropped(Stream& stream, const Task& task, uint64_t number) {
  taken(stream, task, number);
  add_now("task", "dropped", track_of(stream), text("\"number\":%" PRIu64, number));
}

std::string Trace::facts_text(const TaskFacts& facts) const {
  int32_t peer = 0;
  std::string out = text("\"kind\":\"%s\"", emu::name_of(facts.kind));
  const std::string reads = ranges_text(facts.reads, peer);
  const std::string writes = ranges_text(facts.writes, peer);
  if (reads.size() > 2) out += ",\"reads\":" + reads;
  if (writes.size() > 2) out += ",\"writes\":" + writes;
  if (facts.bytes != 0) out += text(",\"bytes\":%zu", facts.bytes);
  if (facts.direction) out += text(",\"direction\":\"%s\"", name_of(*facts.direction));
  if (facts.word != 0) {
    Places::each({facts.word, sizeof(uint64_t)}, [&](const Spot& spot) {
      out += ",\"word\":" + spot_text(spot);
      if (spot.block != nullptr && spot.block->import != nullptr) peer = spot.block->import->exporter_pid();
    });
    out += text(",\"value\":%" PRIu64 ",\"mode\":%u", facts.value, facts.mode);
  } else if (facts.kind == TaskKind::Fill) {
    out += text(",\"value\":%" PRIu64, facts.value);
  } else if (facts.kind == TaskKind::Copy && facts.bytes == sizeof(uint64_t)) {
    if (const auto value = Places::word_at(facts.reads)) out += text(",\"value\":%" PRIu64, *value);
  }
  if (peer != 0) out += text(",\"peer\":%d", peer);
  if (facts.sync != nullptr) {
    out += text(",\"sync\":%" PRIu64, facts.sync->number());
    if (facts.sync->shared_file != 0) {
      out +=
          text(",\"shared\":[%" PRIu64 ",%" PRIu64 "]", facts.sync->shared_file, facts.sync->shared_offset);
    }
  }
  if (!facts.notes.empty()) out += ",\"notes\":" + quoted(facts.notes);
  return out;
}

void Trace::begun(Stream&, const Task&, const TaskFacts& facts) {
  if (facts.kind == TaskKind::Replay) return;  // its own tasks come before its end: nothing may be kept here
  task_text = facts_text(facts);
  task_began = now_ns();
}

void Trace::ended(Stream& stream, const Task&, const TaskFacts& facts, aclError code) {
  const uint64_t now = now_ns();
  const uint64_t track = track_of(stream);
  if (facts.kind == TaskKind::Replay) {
    add_now("task", "replay ended", track, text("\"code\":%d", code));
    return;
  }
  Submitted running{};
  {
    std::lock_guard lock(mutex_);
    running = lines_[&stream].running;
  }
  std::string args = std::move(task_text);
  args += text(",\"number\":%" PRIu64 ",\"submitted\":%" PRIu64 ",\"begin\":%" PRIu64 ",\"end\":%" PRIu64
               ",\"stream\":%d,\"device\":%d,\"code\":%d",
               running.number, running.at_ns, task_began, now, stream.id, stream.context().device.id, code);
  if (running.from_stream >= 0) args += text(",\"from_stream\":%d", running.from_stream);
  add({'X', "task", facts.name, track, task_began, now, 0, std::move(args)});
  if (running.at_ns != 0) {
    add({'f', "submit", facts.name, track, task_began, now, flow_of_task(stream, running.number), ""});
  }
  if (facts.sync == nullptr) return;
  const bool records = facts.kind == TaskKind::EventRecord || facts.kind == TaskKind::NotifyRecord;
  add({records ? 's' : 'f', "sync", "sync", track, records ? task_began : now, now, facts.sync->number(),
       ""});
}

void Trace::released(SyncPoint& point, Stream& stream) {
  add_now("sync", "released", track_of(stream),
          text("\"sync\":%" PRIu64 ",\"stream\":%d", point.number(), stream.id));
}

void Trace::acquired(SyncPoint& point, Stream& stream) {
  add_now("sync", "acquired", track_of(stream),
          text("\"sync\":%" PRIu64 ",\"stream\":%d", point.number(), stream.id));
}

void Trace::restarted(SyncPoint& point) {
  add_now("sync", "restarted", host_track(), text("\"sync\":%" PRIu64, point.number()));
}

void Trace::host_waited(Stream& stream) {
  add_now("host", "waited for stream", host_track(), text("\"stream\":%d", stream.id));
}

void Trace::host_saw(SyncPoint& point) {
  add_now("host", "saw event", host_track(), text("\"sync\":%" PRIu64, point.number()));
}

void Trace::host_begun(const TaskFacts& facts) {
  task_text = facts_text(facts);
  work_began = now_ns();
}

void Trace::host_ended(const TaskFacts& facts) {
  const uint64_t now = now_ns();
  std::string args = std::move(task_text);
  args += text(",\"begin\":%" PRIu64 ",\"end\":%" PRIu64, work_began, now);
  add({'X', "host_work", facts.name, host_track(), work_began, now, 0, std::move(args)});
}

void Trace::allocated(const Block& block) {
  const Spot all = Places::whole(block);
  add_now("memory", "allocated", host_track(),
          text("\"spot\":%s,\"device\":%d", spot_text(all).c_str(), block.device));
}

void Trace::freed(const Block& block) {
  if (block.import != nullptr) return;
  add_now("memory", "freed", host_track(), "\"spot\":" + spot_text(Places::whole(block)));
}

void Trace::host_memory_forgotten(uintptr_t base, size_t size) {
  add_now("memory", "freed", host_track(), "\"spot\":" + spot_text({0, base, base + size, nullptr, nullptr}));
}

void Trace::stream_gone(Stream& stream) {
  std::lock_guard lock(mutex_);
  lines_.erase(&stream);
}

void Trace::found_race(const std::string& report) {
  add_now("race", "race", host_track(), "\"report\":" + quoted(report));
}

}  // namespace emu::watch

void emuFlush(void) {
  if (auto* watching = emu::observer()) watching->flush();
}
