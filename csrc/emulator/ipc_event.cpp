#include "emulator/ipc_event.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <map>
#include <utility>

#include "emulator/address_space.h"
#include "emulator/context.h"
#include "emulator/device.h"
#include "emulator/error.h"
#include "emulator/graph.h"
#include "emulator/ipc_memory.h"
#include "emulator/peer.h"
#include "emulator/runtime.h"
#include "emulator/stream.h"

namespace emu {
namespace {

using Page = IpcEventPage;

constexpr auto generation_of = Page::generation_of;
constexpr auto state_of = Page::state_of;

constexpr auto kNap = std::chrono::milliseconds(5);
constexpr auto kHostNap = std::chrono::milliseconds(50);  // a recorder that dies is noticed this late
constexpr uint64_t kHandleMagic = 0x746E'6576'4575'6D65;

std::shared_ptr<Page> map_page(int fd) {
  void* at = mmap(nullptr, sizeof(Page), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (at == MAP_FAILED)
    fail(ACL_ERROR_RT_RESOURCE_ALLOC_FAIL, "mmap of IPC events: %s", std::strerror(errno));
  return {static_cast<Page*>(at), [](Page* page) { munmap(page, sizeof(Page)); }};
}

struct Handle {
  uint64_t magic;
  uint64_t started;
  uint64_t secret;
  int32_t pid;
  int32_t ledger_fd;
  uint32_t slot;
  uint32_t generation;
};
static_assert(sizeof(Handle) <= sizeof(aclrtIpcEventHandle));

// A capture would repeat what is settled once, at the call.
void refuse_in_capture(const Stream& stream) {
  const auto graph = stream.capture();
  if (graph == nullptr) return;
  graph->invalidate();
  fail(ACL_ERROR_RT_FEATURE_NOT_SUPPORT, "an IPC event cannot be captured (stream %d)", stream.id);
}

}  // namespace

class IpcRecordTask final : public Task {
 public:
  IpcRecordTask(std::shared_ptr<IpcEvent> event, IpcRecord record)
      : Task("aclrtRecordEvent"),
        event_(std::move(event)),
        record_(record),
        point_(event_->point_of(record)) {}

  aclError run(Stream& stream) override {
    if (event_->import_ != nullptr) {
      std::string why;
      if (const aclError code = event_->import_->check_alive(why); code != ACL_SUCCESS) {
        stream.explain(std::move(why));
        return code;
      }
    }
    event_->settle(record_, Page::kDone);
    return ACL_SUCCESS;
  }
  void dropped(aclError) override { event_->settle(record_, Page::kLost); }
  void describe(TaskFacts& facts) const override {
    facts.name = what;
    facts.kind = TaskKind::EventRecord;
    facts.sync = point_.get();
  }

 private:
  const std::shared_ptr<IpcEvent> event_;
  const IpcRecord record_;
  const std::shared_ptr<SyncPoint> point_;
};

class IpcWaitTask final : public Task {
 public:
  IpcWaitTask(std::shared_ptr<IpcEvent> event, IpcRecord record, uint32_t timeout_s)
      : Task("aclrtStreamWaitEvent"),
        event_(std::move(event)),
        record_(record),
        point_(event_->point_of(record)),
        timeout_s_(timeout_s) {}

  aclError run(Stream& stream) override {
    Deadline deadline;
    if (timeout_s_ != 0) deadline = Clock::now() + std::chrono::seconds(timeout_s_);
    std::string why;
    while (!event_->reached(record_)) {
      if (stream.stopping()) return ACL_ERROR_RT_STREAM_ABORT;
      if (deadline && Clock::now() >= *deadline) return ACL_ERROR_RT_WAIT_TIMEOUT;
      if (event_->import_ != nullptr) {
        if (const aclError code = event_->import_->check_alive(why); code != ACL_SUCCESS) {
          stream.explain(std::move(why));
          return code;
        }
      }
      stream.park(&event_->word(record_), event_->word(record_).load(), kNap);
    }
    return ACL_SUCCESS;
  }
  void describe(TaskFacts& facts) const override {
    facts.name = what;
    facts.kind = TaskKind::EventWait;
    facts.sync = point_.get();
  }

 private:
  const std::shared_ptr<IpcEvent> event_;
  const IpcRecord record_;
  const std::shared_ptr<SyncPoint> point_;
  const uint32_t timeout_s_;
};

IpcEvent::IpcEvent(std::shared_ptr<Page> page, uint64_t inode, uint32_t index, std::shared_ptr<Import> import)
    : index(index), page_(std::move(page)), inode_(inode), import_(std::move(import)) {}

IpcEvent::~IpcEvent() {
  if (is_imported()) return;
  close();
  retire(page_->latest[index].exchange(0));
  Runtime::get().ipc_events->give_back(index);
}

void IpcEvent::close() {
  if (!is_imported()) Runtime::get().exports->revoke(reinterpret_cast<uintptr_t>(this));
}

void IpcEvent::check_usable(const Stream* stream) const {
  if (stream != nullptr) refuse_in_capture(*stream);
  if (!is_imported()) return;
  std::string why;
  if (const aclError code = import_->check_open(why); code != ACL_SUCCESS) fail(code, "%s", why.c_str());
}

std::shared_ptr<SyncPoint> IpcEvent::point_of(const IpcRecord& record) {
  const uint64_t offset = uint64_t{record.generation} << 32 | record.slot;
  std::lock_guard lock(point_mutex_);
  if (point_ == nullptr || point_->shared_offset != offset) {
    point_ = std::make_shared<SyncPoint>();
    point_->shared_file = inode_;
    point_->shared_offset = offset;
  }
  return point_;
}

bool IpcEvent::latest(IpcRecord& out) const {
  const uint64_t named = page_->latest[index].load();
  if (named == 0) return false;
  out = {static_cast<uint32_t>(named) - 1, static_cast<uint32_t>(named >> 32)};
  return out.slot < Page::kSlots;
}

uint32_t IpcEvent::take_slot() const {
  uint32_t slot = take_free_slot();
  if (slot == Page::kSlots) {
    take_back_from_dead();
    slot = take_free_slot();
  }
  if (slot != Page::kSlots) return slot;
  fail(ACL_ERROR_RT_NO_EVENT_RESOURCE, "the %u slots for records of IPC events are in use", Page::kSlots);
}

uint32_t IpcEvent::take_free_slot() const {
  // Each process begins elsewhere, so that two that record at once seldom meet.
  static std::atomic<uint32_t> next{static_cast<uint32_t>(getpid()) * 97};
  static const uint64_t since = Peer::start_time(getpid());
  for (uint32_t tries = 0; tries < Page::kSlots; ++tries) {
    const uint32_t slot = next.fetch_add(1) % Page::kSlots;
    uint32_t seen = page_->slots[slot].load();
    if (state_of(seen) != Page::kFree) continue;
    const uint32_t taken = (generation_of(seen) + 1) * Page::kOne | Page::kPending;
    if (!page_->slots[slot].compare_exchange_strong(seen, taken)) continue;
    page_->started[slot].store(since);
    page_->recorders[slot].store(getpid());  // after its start: who reads it reads that, too
    return slot;
  }
  return Page::kSlots;
}

void IpcEvent::take_back_from_dead() const {
  std::bitset<Page::kSlots> named;  // what an event names tells those who ask that its recorder is gone
  for (const auto& latest : page_->latest) {
    if (const uint64_t name = latest.load(); name != 0)
      named[(static_cast<uint32_t>(name) - 1) % Page::kSlots] = true;
  }
  std::map<std::pair<pid_t, uint64_t>, bool> lives;
  for (uint32_t slot = 0; slot < Page::kSlots; ++slot) {
    uint32_t seen = page_->slots[slot].load();
    if (state_of(seen) != Page::kPending || ((seen & Page::kRetired) == 0 && named[slot])) continue;
    pid_t recorder = page_->recorders[slot].load();
    if (recorder == 0) continue;
    const uint64_t started = page_->started[slot].load();
    const auto [known, is_new] = lives.try_emplace({recorder, started}, false);
    if (is_new) known->second = Peer::lives(recorder, started);
    // Of several processes that look at the same time one goes on from here.
    if (known->second || !page_->recorders[slot].compare_exchange_strong(recorder, 0)) continue;
    page_->lost[slot].store(generation_of(seen) + 1);
    if (Page::free_pending(page_->slots[slot], seen)) futex_wake_all(&page_->slots[slot]);
  }
}

void IpcEvent::settle(const IpcRecord& record, uint32_t how) const {
  std::atomic<uint32_t>& slot = word(record);
  if (how == Page::kLost) page_->lost[record.slot].store(record.generation + 1);
  page_->recorders[record.slot].store(0);
  for (uint32_t seen = slot.load();;) {
    const bool free = (seen & Page::kRetired) != 0;
    const uint32_t settled = (seen & ~(Page::kState | Page::kRetired)) | (free ? Page::kFree : how);
    if (slot.compare_exchange_weak(seen, settled)) break;
  }
  futex_wake_all(&slot);
}

void IpcEvent::retire(uint64_t latest) const {
  if (latest == 0) return;
  std::atomic<uint32_t>& slot = page_->slots[(static_cast<uint32_t>(latest) - 1) % Page::kSlots];
  for (uint32_t seen = slot.load(); generation_of(seen) == latest >> 32;) {
    const uint32_t done = seen & ~(Page::kState | Page::kRetired);
    if (slot.compare_exchange_weak(seen, state_of(seen) == Page::kPending ? seen | Page::kRetired : done))
      return;
  }
}

bool IpcEvent::is_lost(const IpcRecord& record) const {
  return page_->lost[record.slot].load() == record.generation + 1;
}

bool IpcEvent::reached(const IpcRecord& record) const {
  const uint32_t seen = word(record).load();
  if (generation_of(seen) == record.generation && state_of(seen) == Page::kPending) return false;
  // The slot may be used again by now; that its record was lost is known until the next one is lost there.
  return !is_lost(record);
}

void IpcEvent::record(Stream& stream) {
  check_usable(&stream);
  const uint32_t slot = take_slot();
  const IpcRecord made{slot, generation_of(page_->slots[slot].load())};
  try {
    stream.submit(std::make_shared<IpcRecordTask>(shared_from_this(), made));
  } catch (...) {
    settle(made, Page::kFree);
    throw;
  }
  retire(page_->latest[index].exchange(uint64_t{made.generation} << 32 | (slot + 1)));
}

void IpcEvent::make_wait(Stream& stream, uint32_t timeout_s) {
  check_usable(&stream);
  IpcRecord on;
  if (!latest(on)) return;  // never recorded: holds nobody up
  stream.submit(std::make_shared<IpcWaitTask>(shared_from_this(), on, timeout_s));
}

void IpcEvent::check_not_lost(const IpcRecord& record) const {
  if (is_lost(record)) {
    fail(ACL_ERROR_RT_STREAM_ABORT, "the stream that recorded the event was stopped before it got there");
  }
  const pid_t recorder = page_->recorders[record.slot].load();
  const uint64_t started = page_->started[record.slot].load();
  if (recorder == 0 || Peer::lives(recorder, started) || reached(record)) return;
  fail(ACL_ERROR_RT_LINK_ERROR, "process %d, which recorded the event, is gone", recorder);
}

bool IpcEvent::is_done() {
  check_usable(nullptr);
  IpcRecord asked;
  if (!latest(asked) || reached(asked)) return true;
  check_not_lost(asked);
  return false;
}

bool IpcEvent::wait_on_host(Deadline deadline) {
  check_usable(nullptr);
  IpcRecord asked;
  if (!latest(asked)) return true;
  while (!reached(asked)) {
    check_not_lost(asked);
    auto left = std::chrono::nanoseconds(kHostNap);
    if (deadline) left = std::min<std::chrono::nanoseconds>(left, *deadline - Clock::now());
    if (left.count() <= 0) return false;
    const uint32_t seen = word(asked).load();
    if (!reached(asked)) futex_wait(&word(asked), seen, left);
  }
  return true;
}

std::shared_ptr<IpcEvent> IpcEventPool::make() {
  std::lock_guard lock(mutex_);
  if (page_ == nullptr) {
    const int fd = AddressSpace::new_memory(sizeof(Page));
    try {
      page_ = map_page(fd);
    } catch (...) {
      ::close(fd);
      throw;
    }
    fd_ = fd;
  }
  if (used_.all()) fail(ACL_ERROR_RT_NO_EVENT_RESOURCE, "%u IPC events are in use", Page::kEvents);
  while (used_[next_ % Page::kEvents]) ++next_;
  const uint32_t index = next_++ % Page::kEvents;
  used_[index] = true;
  page_->latest[index].store(0);
  return std::make_shared<IpcEvent>(page_, inode_of(fd_), index, nullptr);
}

void IpcEventPool::give_back(uint32_t index) {
  std::lock_guard lock(mutex_);
  used_[index] = false;
}

void export_ipc_event(const IpcEvent& event, aclrtIpcEventHandle& handle) {
  if (event.is_imported()) fail(ACL_ERROR_RT_PARAM_INVALID, "the event was opened from a handle itself");
  const Exports::Range range{reinterpret_cast<uintptr_t>(&event),
                             Runtime::get().ipc_events->fd(),
                             event.index,
                             sizeof(Page),
                             -1,
                             ExportKind::Event};
  const IpcKey key = Runtime::get().exports->add(range, true);
  const Handle out{kHandleMagic, key.started, key.secret, key.pid, key.ledger_fd, key.slot, key.generation};
  handle = {};
  std::memcpy(&handle, &out, sizeof out);
}

std::shared_ptr<IpcEvent> open_ipc_event(const aclrtIpcEventHandle& handle) {
  Handle in;
  std::memcpy(&in, &handle, sizeof in);
  if (in.magic != kHandleMagic || in.slot >= Ledger::kSlots) {
    fail(ACL_ERROR_RT_PARAM_INVALID, "the handle was not made by aclrtIpcGetEventHandle");
  }
  if (in.pid == getpid()) fail(ACL_ERROR_RT_PARAM_INVALID, "the handle was made by this same process");
  const IpcKey key{in.pid, in.started, in.ledger_fd, in.slot, in.generation, in.secret};
  Imports::Opened opened = Runtime::get().imports->open_shared(key, ExportKind::Event);
  std::shared_ptr<void> closes(nullptr, [&](void*) { ::close(opened.fd); });
  if (opened.offset >= Page::kEvents || opened.size != sizeof(Page)) {
    fail(ACL_ERROR_RT_IPC_ERROR, "process %d has no such event", in.pid);
  }
  return std::make_shared<IpcEvent>(map_page(opened.fd), inode_of(opened.fd),
                                    static_cast<uint32_t>(opened.offset), std::move(opened.import));
}

}  // namespace emu
