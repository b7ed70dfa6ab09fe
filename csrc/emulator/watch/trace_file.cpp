#include "emulator/watch/trace_file.h"

#include <fcntl.h>
#include <pthread.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <thread>

#include "emulator/error.h"
#include "emulator/watch/facts_json.h"
#include "emulator/without_signals.h"

namespace emu::watch {
namespace {

constexpr size_t kMostWaiting = size_t{1} << 16;
constexpr auto kEvery = std::chrono::milliseconds(10);

// The only one of the process; it lives as long as that.
TraceFile* the_file = nullptr;

// Nanoseconds as the microseconds that the format wants.
std::string microseconds(uint64_t ns) {
  return text("%" PRIu64 ".%03u", ns / 1000, static_cast<unsigned>(ns % 1000));
}

}  // namespace

TraceFile::TraceFile(std::string directory) : directory_(std::move(directory)) {
  the_file = this;
  pthread_atfork(
      [] {
        the_file->write_mutex_.lock();
        the_file->mutex_.lock();
      },
      [] {
        the_file->mutex_.unlock();
        the_file->write_mutex_.unlock();
      },
      [] { the_file->after_fork(); });
}

void TraceFile::after_fork() {
  waiting_.clear();
  tracks_.clear();
  if (fd_ >= 0) close(fd_);
  fd_ = -1;
  mutex_.unlock();
  write_mutex_.unlock();
}

void TraceFile::open() {
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
  const WithoutSignals block;
  std::thread([this] { write_loop(); }).detach();
}

void TraceFile::write_loop() {
  // As the device's threads are called, which go on while the host is frozen: their trace goes on, too.
  pthread_setname_np(pthread_self(), "npu-trace");
  for (;;) {
    {
      std::unique_lock lock(mutex_);
      full_.wait_for(lock, kEvery, [&] { return waiting_.size() > kMostWaiting / 2; });
    }
    flush();
  }
}

void TraceFile::flush() {
  std::lock_guard one_writer(write_mutex_);
  std::vector<TraceEntry> entries;
  {
    std::lock_guard lock(mutex_);
    if (fd_ < 0) return;
    entries.swap(waiting_);
    room_.notify_all();
  }
  if (!entries.empty()) write_out(entries);
}

void TraceFile::write_out(const std::vector<TraceEntry>& entries) {
  std::string out;
  const int pid = getpid();
  for (const TraceEntry& entry : entries) {
    const std::string name = quoted(entry.name);
    out += text("{\"ph\":\"%c\",\"pid\":%d,\"tid\":%" PRIu64 ",\"name\":%s", entry.phase, pid, entry.track,
                name.c_str());
    if (entry.phase != 'M') {
      out += text(",\"cat\":\"%s\",\"ts\":%s", entry.category, microseconds(entry.begin_ns).c_str());
    }
    if (entry.phase == 'X') out += ",\"dur\":" + microseconds(entry.end_ns - entry.begin_ns);
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
    if (wrote <= 0) {  // a full disk must not stop the program that is watched
      std::fprintf(stderr, "emulated Ascend runtime: the trace of process %d is cut off: %s\n", pid,
                   std::strerror(errno));
      std::lock_guard lock(mutex_);
      close(fd_);
      fd_ = -2;
      return;
    }
    done += static_cast<size_t>(wrote);
  }
}

void TraceFile::add(TraceEntry entry) {
  std::unique_lock lock(mutex_);
  open();
  if (fd_ < 0) return;
  if (waiting_.size() >= kMostWaiting / 2) full_.notify_one();
  room_.wait(lock, [&] { return waiting_.size() < kMostWaiting; });
  waiting_.push_back(std::move(entry));
}

bool TraceFile::is_new(uint64_t track) {
  std::lock_guard lock(mutex_);
  const auto at = std::lower_bound(tracks_.begin(), tracks_.end(), track);
  if (at != tracks_.end() && *at == track) return false;
  tracks_.insert(at, track);
  return true;
}

}  // namespace emu::watch
