#include "link/engine.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <map>

#include "acl/check.h"
#include "acl/queue.h"
#include "error.h"
#include "link/binding.h"
#include "link/forked.h"
#include "link/link.h"
#include "link/stream_mark.h"
#include "link/transfer.h"
#include "messages/messages.h"
#include "transport/mapped/fabric.h"
#include "transport/mapped/mapped.h"

namespace datadist {
namespace {

constexpr int kBusyTickMs = 2;
constexpr int kIdleTickMs = 50;
constexpr auto kLookAtAll = std::chrono::milliseconds(kIdleTickMs - kBusyTickMs);  // also at idle links
constexpr int kSyncTimeoutMs = 1000;
constexpr auto kGiveUp = std::chrono::seconds(5);  // without one look at the words
constexpr auto kGiveUpALostDevice = std::chrono::seconds(1);
constexpr auto kBlindAfter = std::chrono::milliseconds(500);
constexpr auto kClockGap =
    std::chrono::milliseconds(500);  // a tick this late: a debugger, a suspend, a SIGSTOP

std::mutex engines_mutex;

std::map<int, std::shared_ptr<Engine>>& engines() {
  static auto* map = new std::map<int, std::shared_ptr<Engine>>;  // never destroyed: exit order is not ours
  return *map;
}

}  // namespace

// In a context of their own, where a failure stops nothing: a write to a peer that died must not end the
// watch.
struct Engine::Streams {
  explicit Streams(int device)
      : context(device),
        local(context, acl::OnFailure::kContinue),
        mail(context, acl::OnFailure::kContinue) {}
  acl::Context context;
  acl::Stream local;
  acl::Stream mail;
};

std::shared_ptr<Engine> Engine::of(int device) {
  require_not_forked("init");
  threads_start_here();
  std::lock_guard lock(engines_mutex);
  auto& engine = engines()[device];
  if (engine == nullptr || engine->has_stopped()) engine = std::make_shared<Engine>(device);
  return engine;
}

void Engine::stop_all() {
  if (is_forked_child()) return;
  std::map<int, std::shared_ptr<Engine>> all;
  {
    std::lock_guard lock(engines_mutex);
    all.swap(engines());
  }
  for (const auto& [_, engine] : all) engine->stop();
}

Engine::Engine(int device)
    : device_(device),
      words_([this](size_t bytes) { return allocate_filled(bytes, 0); }),
      pages_([this](size_t bytes) { return filled(mapped::allocate_for_peers(device_, bytes), bytes, 0); }),
      failed_status_(allocate_filled(sizeof(uint64_t), 0xFF)),  // -1, as LLM_FAILED reads in an int32
      mail_word_(allocate_filled(sizeof(uint64_t), 0)),
      local_feeder_(device, acl::OnFailure::kContinue, &words_, nullptr, &streams_, {}),
      wake_fd_(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)),
      timer_fd_(timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC)),
      arriving_(&Transfer::at_engine_),
      thread_([this] { run(); }) {}

Engine::~Engine() {
  stop();
  close(wake_fd_);
  close(timer_fd_);
}

void Engine::stop() {
  {
    std::lock_guard lock(mutex_);
    must_stop_ = true;
  }
  wake();
  if (thread_.joinable()) thread_.join();
  local_feeder_.stop();
  Links links;
  {
    std::lock_guard lock(mutex_);
    links = links_;
  }
  // Without the lock: what ends on them wakes us. Then nothing of any transfer is queued any more.
  for (const auto& link : links) link->stop_streams();
  std::lock_guard lock(mutex_);
  take_arriving();
  for (const auto& transfer : transfers_)
    transfer->abandon(render(Message::device_shuts_down, {{"value", device_}}));
  for (const auto& binding : bindings_) binding->abandon();
  for (const auto& mark : marks_) mark->abandon();
  transfers_.clear();
  bindings_.clear();
  for (const auto& link : links_) datadist::links().release(link->handle());
  links_.clear();  // they hold this engine, too
}

bool Engine::has_stopped() {
  std::lock_guard lock(mutex_);
  return must_stop_;
}

void Engine::watch(std::shared_ptr<Link> link) {
  {
    std::lock_guard lock(mutex_);
    if (must_stop_) refuse(Message::device_is_shut_down, {{"value", device_}});
    links_.push_back(std::move(link));
  }
  wake();
}

void Engine::watch(const std::shared_ptr<Transfer>& transfer) {
  if (must_stop_) refuse(Message::device_is_shut_down, {{"value", device_}});
  arriving_.push(transfer);
  if (must_stop_) {  // who stops us may have looked before it was there
    std::lock_guard lock(mutex_);
    take_arriving();
    std::erase(transfers_, transfer);
    transfer->abandon(render(Message::device_shuts_down, {{"value", device_}}));
    refuse(Message::device_is_shut_down, {{"value", device_}});
  }
  wake_soon();
}

void Engine::take_arriving() {
  arriving_.take([this](std::shared_ptr<Transfer> transfer) { transfers_.push_back(std::move(transfer)); });
}

void Engine::watch(std::shared_ptr<Binding> binding) {
  std::lock_guard lock(mutex_);
  if (must_stop_) refuse(Message::device_is_shut_down, {{"value", device_}});
  bindings_.push_back(std::move(binding));
}

void Engine::watch(std::shared_ptr<StreamMark> mark) {
  {
    std::lock_guard lock(mutex_);
    if (must_stop_) refuse(Message::device_is_shut_down, {{"value", device_}});
    marks_.push_back(std::move(mark));
  }
  wake();
}

std::vector<std::shared_ptr<Transfer>> Engine::transfers() {
  std::lock_guard lock(mutex_);
  take_arriving();
  return transfers_;
}

void Engine::wake() {
  const uint64_t one = 1;
  [[maybe_unused]] const auto written = write(wake_fd_, &one, sizeof(one));
}

// Most transfers have ended by then. What is urgent wakes at once: a refusal, a cancel, who waits for a tick.
void Engine::wake_soon() {
  if (timer_is_set_.exchange(true)) return;
  const itimerspec once{{}, {0, kBusyTickMs * 1'000'000}};
  timerfd_settime(timer_fd_, 0, &once, nullptr);
}

bool Engine::wait_for_tick(Clock::time_point deadline) {
  std::unique_lock lock(mutex_);
  const uint64_t seen = ticks_;
  ++waiting_;
  wake();  // behind the look at `ticks_`: else the tick that it brings may have passed by then
  const bool ticked = ticked_.wait_until(lock, deadline, [&] { return ticks_ != seen || must_stop_; });
  --waiting_;
  return ticked && !must_stop_;
}

// Not with aclrtMemset: a synchronous one would break a capture that runs anywhere in this process.
DeviceMemory Engine::allocate_filled(size_t bytes, int byte) {
  return filled(mapped::allocate(device_, bytes), bytes, byte);
}

DeviceMemory Engine::filled(DeviceMemory memory, size_t bytes, int byte) const {
  acl::ContextScope restore;
  DATADIST_ACL(acl::set_device(device_));
  acl::Context context(device_);
  acl::Stream stream(context, acl::OnFailure::kContinue);
  DATADIST_ACL(acl::queue_fill(memory.address, byte, bytes, stream.get()));
  DATADIST_ACL(acl::synchronize(stream.get(), kSyncTimeoutMs * 10));
  return memory;
}

void Engine::run() {
  try {
    acl::ThreadDevice device(device_);
    Streams streams(device_);
    auto last = Clock::now();
    auto looked = last;
    bool is_busy = false;
    while (sleep(is_busy)) {
      const auto now = Clock::now();
      if (now - last > kClockGap) extend_deadlines(now - last);
      last = now;
      try {
        is_busy = look(streams);
        looked = now;
        is_blind_ = false;
      } catch (const acl::DeviceLost&) {
        if (Clock::now() - looked > kGiveUpALostDevice) throw;
        is_blind_ = true;
      } catch (const Error&) {
        // A call that is refused once, or a device that is stuck for a while, is not our peers' fault.
        const auto blind_for = Clock::now() - looked;
        if (blind_for > kGiveUp) throw;
        is_blind_ = blind_for > kBlindAfter;
      }
    }
  } catch (const std::exception& error) {
    abandon(error.what());
  }
  ticked_.notify_all();
}

// Hundreds of links may be idle beside one that is busy: those are looked at as seldom as if all were, or
// when somebody asks for a look.
Engine::Links Engine::links_to_look_at(bool at_all) {
  std::lock_guard lock(mutex_);
  if (at_all) return links_;
  Links busy;
  for (const auto& link : links_) {
    if (link->is_busy()) busy.push_back(link);
  }
  return busy;
}

// One tick: refresh the mirrors, judge by them, tidy up. Nothing is judged by stale mirrors.
bool Engine::look(const Streams& streams) {
  streams.context.make_current();  // unmapping through torch's allocator may have changed it
  const auto now = Clock::now();
  const bool at_all = is_woken_ || now - looked_at_all_ >= kLookAtAll;
  const Links links = links_to_look_at(at_all);
  watch_processes(links);
  words_.queue_reads(streams.local.get());
  if (at_all) {
    pages_.queue_reads(streams.local.get());
  } else {
    std::vector<Page> pages;
    for (const auto& link : links) pages.push_back(link->page());
    pages_.queue_reads(pages, streams.local.get());
  }
  DATADIST_ACL(acl::synchronize(streams.local.get(), kSyncTimeoutMs));
  words_.zeroes_done();
  const bool is_busy =
      tick({Clock::now(), streams.local.get(), streams.mail.get(), mail_word_.address}, links);
  words_.queue_zeroes(streams.local.get());
  if (at_all) {
    is_woken_ = false;
    looked_at_all_ = now;
    std::lock_guard lock(mutex_);
    ++ticks_;
  }
  ticked_.notify_all();
  return is_busy;
}

void Engine::extend_deadlines(Clock::duration gap) {
  std::lock_guard lock(mutex_);
  take_arriving();
  for (const auto& link : links_) link->clock_gap(gap);
  for (const auto& transfer : transfers_) transfer->clock_gap(gap);
}

// Without a watchdog nothing here has a deadline: everything ends with the reason, so that no host waits in
// silence. A stream of the device that waits is beyond reach: whoever reads the reason must know.
void Engine::abandon(const std::string& error) {
  const std::string why = render(Message::watchdog_stopped, {{"value", device_}, {"why", error}});
  std::lock_guard lock(mutex_);
  std::fprintf(stderr,
               "torch_llm_datadist: %s %zu links are down, %zu transfers and %zu bindings fail with "
               "LLM_FAILED.\n",
               why.c_str(), links_.size(), transfers_.size(), bindings_.size());
  must_stop_ = true;
  take_arriving();
  is_blind_ = true;
  for (const auto& link : links_)
    link->die(kFailed, join("the watchdog of device ", device_, " stopped: ", error));
  for (const auto& transfer : transfers_) transfer->abandon(why);
  for (const auto& binding : bindings_) binding->abandon();
  for (const auto& mark : marks_) mark->abandon();
}

bool Engine::tick(const Tick& tick, const Links& links) {
  std::vector<std::shared_ptr<Transfer>> transfers;
  std::vector<std::shared_ptr<Binding>> bindings;
  std::vector<std::shared_ptr<StreamMark>> marks;
  bool is_waited_for = false;
  {
    std::lock_guard lock(mutex_);
    take_arriving();
    transfers = transfers_;
    bindings = bindings_;
    marks = marks_;
    is_waited_for = waiting_ > 0;
  }
  local_feeder_.tick();
  bool is_busy = is_waited_for || !local_feeder_.is_idle();
  for (const auto& binding : bindings) is_busy = binding->tick(tick) || is_busy;
  for (const auto& link : links) {
    link->tick(tick);
    is_busy = is_busy || link->is_busy();
  }
  std::erase_if(marks, [](const auto& mark) { return !mark->tick(); });  // those that are through stay
  size_t retired = 0;
  for (const auto& transfer : transfers) retired += transfer->tick(tick) ? 1 : 0;
  is_busy = is_busy || retired < transfers.size();
  transfers.clear();
  std::vector<Link*> gone;
  for (const auto& link : links) {
    if (link->is_gone(tick)) gone.push_back(link.get());
  }
  std::lock_guard lock(mutex_);
  // A handle or a binding may queue something that reads a transfer's words until it lets go of it, so
  // whether any stream still does is asked when nobody else holds it.
  std::erase_if(transfers_,
                [](const auto& transfer) { return transfer.use_count() == 1 && transfer->is_retired(); });
  std::erase_if(bindings_, [](const auto& binding) { return binding->is_gone(); });
  std::erase_if(marks_,
                [&](const auto& mark) { return std::find(marks.begin(), marks.end(), mark) != marks.end(); });
  is_busy = is_busy || !marks_.empty();
  std::erase_if(links_, [&](const auto& link) {
    const bool is_gone = std::find(gone.begin(), gone.end(), link.get()) != gone.end();
    // A ticket names its link by this handle: not before nothing of the old one is written any more.
    if (is_gone) datadist::links().release(link->handle());
    return is_gone;
  });
  return is_busy;
}

// False when it is time to stop.
bool Engine::sleep(bool is_busy) {
  std::array<pollfd, 2> fds{{{wake_fd_, POLLIN, 0}, {timer_fd_, POLLIN, 0}}};
  poll(fds.data(), fds.size(), is_busy ? kBusyTickMs : kIdleTickMs);
  uint64_t count;
  if (read(wake_fd_, &count, sizeof(count)) > 0) is_woken_ = true;
  if (read(timer_fd_, &count, sizeof(count)) > 0) timer_is_set_ = false;
  std::lock_guard lock(mutex_);
  return !must_stop_;
}

// A death on this host is known at once, and a reused pid is never taken for the peer.
void Engine::watch_processes(const Links& links) {
  std::vector<pollfd> fds;
  for (const auto& link : links) fds.push_back({link->watches_process() ? link->pidfd() : -1, POLLIN, 0});
  if (fds.empty() || poll(fds.data(), fds.size(), 0) <= 0) return;
  for (size_t i = 0; i < fds.size(); ++i) {
    if (fds[i].fd >= 0 && (fds[i].revents & POLLIN) != 0) links[i]->peer_process_ended("its process ended");
  }
}

}  // namespace datadist
