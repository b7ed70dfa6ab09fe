#include "emulator/watch/trace.h"

#include <pthread.h>
#include <unistd.h>

#include <chrono>
#include <cinttypes>
#include <ctime>
#include <thread>
#include <utility>
#include <vector>

#include "emulator/block.h"
#include "emulator/context.h"
#include "emulator/device.h"
#include "emulator/emu.h"
#include "emulator/error.h"
#include "emulator/stream.h"
#include "emulator/watch/facts_json.h"
#include "emulator/watch/places.h"
#include "emulator/watch/settings.h"

namespace emu::watch {
namespace {

constexpr uint64_t kStreamTracks = 1'000'000'000;  // above all thread ids
constexpr uint64_t kRangeTracks = 2'000'000'000;

// The same clock in all processes of a host.
uint64_t now_ns() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(now.tv_nsec);
}

// A task is written down when it has ended. What it told somebody, a host function its caller say, may be
// acted upon before that; so who wants all of it waits so long for tasks under way. One that is held takes
// longer.
constexpr auto kFlushWithin = std::chrono::seconds(1);

bool tells(TaskKind kind) {
  return kind != TaskKind::ValueWait && kind != TaskKind::EventWait && kind != TaskKind::NotifyWait &&
         kind != TaskKind::Replay && kind != TaskKind::Delay;
}

thread_local uint64_t call_began = 0;

// What runs on this thread: the tasks of a branch or a replay run inside the task that they are part of.
struct Running {
  uint64_t began;
  std::string facts;
};
thread_local std::vector<Running> all_running;

void push(const TaskFacts& facts) {
  std::string described = facts_json(facts);
  all_running.push_back({now_ns(), std::move(described)});
}

Running pop() {
  Running last = std::move(all_running.back());
  all_running.pop_back();
  return last;
}

}  // namespace

std::unique_ptr<Observer> trace_of_environment() {
  const char* directory = setting("TORCH_LLM_DATADIST_EMULATE_TRACE");
  if (directory == nullptr) return nullptr;
  auto trace = std::make_unique<Trace>(directory);
  range_keeper.store(trace.get(), std::memory_order_release);  // a trace is never given up
  return trace;
}

void Trace::add_now(const char* category, const char* name, uint64_t track, std::string args) {
  const uint64_t now = now_ns();
  args += text("%s\"at\":%" PRIu64, args.empty() ? "" : ",", now);
  file_.add({'i', category, name, track, now, now, 0, std::move(args)});
}

uint64_t Trace::host_track() {
  const auto track = static_cast<uint64_t>(gettid());
  if (file_.is_new(track)) {
    char name[32] = "";
    pthread_getname_np(pthread_self(), name, sizeof name);
    file_.add({'M', "", "thread_name", track, 0, 0, 0, "\"name\":" + quoted(text("thread %s", name))});
  }
  return track;
}

uint64_t Trace::track_of(const Stream& stream) {
  const uint64_t track = kStreamTracks + static_cast<uint64_t>(stream.id);
  if (file_.is_new(track)) {
    const auto name = text("device %d stream %d", stream.context().device.id, stream.id);
    file_.add({'M', "", "thread_name", track, 0, 0, 0, "\"name\":" + quoted(name)});
  }
  return track;
}

void Trace::call_begun(const char*) { call_began = now_ns(); }

void Trace::call_ended(const char* name, aclError code) {
  file_.add({'X', "call", name, host_track(), call_began, now_ns(), 0, text("\"code\":%d", code)});
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
  file_.add({'s', "submit", task.what, from, now, now, flow_of_task(stream, number), ""});
}

void Trace::taken(Stream& stream, const Task&, uint64_t number) {
  std::lock_guard lock(mutex_);
  Line& line = lines_[&stream];
  line.running = {number, 0, -1};
  while (!line.queue.empty() && line.queue.front().number <= number) {
    line.running = line.queue.front();
    line.queue.pop_front();
  }
}

void Trace::dropped(Stream& stream, const Task& task, uint64_t number) {
  taken(stream, task, number);
  add_now("task", "dropped", track_of(stream), text("\"number\":%" PRIu64, number));
}

void Trace::begun(Stream&, const Task&, const TaskFacts& facts) {
  if (tells(facts.kind)) telling_.fetch_add(1);
  push(facts);
}

void Trace::ended(Stream& stream, const Task&, const TaskFacts& facts, aclError code) {
  const uint64_t now = now_ns();
  auto [began, args] = pop();
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
  args += text(",\"number\":%" PRIu64 ",\"submitted\":%" PRIu64 ",\"begin\":%" PRIu64 ",\"end\":%" PRIu64
               ",\"stream\":%d,\"device\":%d,\"code\":%d",
               running.number, running.at_ns, began, now, stream.id, stream.context().device.id, code);
  if (running.from_stream >= 0) args += text(",\"from_stream\":%d", running.from_stream);
  file_.add({'X', "task", facts.name, track, began, now, 0, std::move(args)});
  if (running.at_ns != 0) {
    file_.add({'f', "submit", facts.name, track, began, now, flow_of_task(stream, running.number), ""});
  }
  if (facts.sync != nullptr) {
    const bool records = facts.kind == TaskKind::EventRecord || facts.kind == TaskKind::NotifyRecord;
    file_.add(
        {records ? 's' : 'f', "sync", "sync", track, records ? began : now, now, facts.sync->number(), ""});
  }
  if (tells(facts.kind)) telling_.fetch_sub(1);
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

void Trace::host_begun(const TaskFacts& facts) { push(facts); }

void Trace::host_ended(const TaskFacts& facts) {
  const uint64_t now = now_ns();
  auto [began, args] = pop();
  args += text(",\"begin\":%" PRIu64 ",\"end\":%" PRIu64, began, now);
  file_.add({'X', "host_work", facts.name, host_track(), began, now, 0, std::move(args)});
}

void Trace::allocated(const Block& block) {
  const Spot all = Places::whole(block);
  add_now("memory", "allocated", host_track(),
          text("\"spot\":%s,\"device\":%d", spot_json(all).c_str(), block.device));
}

void Trace::freed(const Block& block) {
  if (block.import != nullptr) return;
  add_now("memory", "freed", host_track(), "\"spot\":" + spot_json(Places::whole(block)));
}

void Trace::host_memory_forgotten(uintptr_t base, size_t size) {
  add_now("memory", "freed", host_track(), "\"spot\":" + spot_json({0, base, base + size, nullptr, nullptr}));
}

void Trace::flush() {
  const auto until = std::chrono::steady_clock::now() + kFlushWithin;
  while (telling_.load() != 0 && std::chrono::steady_clock::now() < until)
    std::this_thread::sleep_for(std::chrono::microseconds(200));
  file_.flush();
}

void Trace::stream_gone(Stream& stream) {
  std::lock_guard lock(mutex_);
  lines_.erase(&stream);
}

void Trace::found_race(const std::string& report) {
  add_now("race", "race", host_track(), "\"report\":" + quoted(report));
}

uint64_t Trace::now() { return now_ns(); }

// On tracks of their own beside their streams': a range is no task, and may begin within one.
void Trace::ranged(Stream* stream, const std::string& message, uint64_t began) {
  uint64_t track = kRangeTracks;
  std::string args = "\"message\":" + quoted(message);
  std::string name = "ranges of the host";
  if (stream != nullptr) {
    const int device = stream->context().device.id;
    track += static_cast<uint64_t>(stream->id) + 1;
    name = text("device %d stream %d: ranges", device, stream->id);
    args += text(",\"stream\":%d,\"device\":%d", stream->id, device);
  }
  if (file_.is_new(track)) file_.add({'M', "", "thread_name", track, 0, 0, 0, "\"name\":" + quoted(name)});
  file_.add({'X', "range", message.substr(0, message.find(' ')), track, began, now_ns(), 0, std::move(args)});
}

}  // namespace emu::watch

void emuFlush(void) {
  if (auto* watching = emu::observer()) watching->flush();
}
