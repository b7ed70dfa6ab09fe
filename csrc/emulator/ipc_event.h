#pragma once

#include <array>
#include <atomic>
#include <bitset>
#include <cstdint>
#include <memory>
#include <mutex>

#include "emulator/acl_headers.h"
#include "emulator/facts.h"
#include "emulator/signal.h"

namespace emu {

class Import;
class Stream;

// What processes that share events see of each other. A record takes a slot when it is called and names it as
// the event's latest; a wait looks the latest up when it is called. So who waits for what is settled on the
// host, and a wait before any record is for nothing. All changes are single compare-and-swaps: a process that
// is killed in between leaves at worst one slot taken. What else it leaves is taken back by who finds none.
//
//   state               reached by                            used again
//   free                -                                     at once
//   pending             a record                              when its recorder is dead and no event names it
//   pending, retired    the event names a later record        when its recorder is dead
//   done                the stream got there                  once the event moves on
//   lost                the stream was stopped before         once the event moves on
struct IpcEventPage {
  static constexpr uint32_t kSlots = 8192;
  static constexpr uint32_t kEvents = 8192;

  // Slot words: state in the low bits, then whether the event has moved on, then a generation.
  enum : uint32_t { kFree = 0, kPending = 1, kDone = 2, kLost = 3, kState = 3, kRetired = 4, kOne = 8 };

  std::array<std::atomic<uint32_t>, kSlots> slots;
  // The process whose stream will settle the slot, told apart by its start; 0: not known yet, or settled.
  std::array<std::atomic<uint64_t>, kSlots> started;
  std::array<std::atomic<int32_t>, kSlots> recorders;
  std::array<std::atomic<uint32_t>, kSlots> lost;     // the last generation + 1 that was lost there
  std::array<std::atomic<uint64_t>, kEvents> latest;  // generation << 32 | slot + 1; 0: never recorded
};

// A record that a wait or a query is about.
struct IpcRecord {
  uint32_t slot = 0;
  uint32_t generation = 0;
};

// One shared event as this process sees it, its own or opened.
class IpcEvent : public std::enable_shared_from_this<IpcEvent> {
 public:
  IpcEvent(std::shared_ptr<IpcEventPage> page, uint64_t inode, uint32_t index,
           std::shared_ptr<Import> import);
  ~IpcEvent();
  IpcEvent(const IpcEvent&) = delete;
  IpcEvent& operator=(const IpcEvent&) = delete;

  // Its handles end at once; what is queued keeps the rest.
  void close();
  void record(Stream& stream);
  void make_wait(Stream& stream, uint32_t timeout_s);
  bool is_done();  // true before the first record; throws when the latest will never be reached
  bool wait_on_host(Deadline deadline);  // false when the deadline passed; throws as is_done()

  bool is_imported() const { return import_ != nullptr; }
  const uint32_t index;

 private:
  friend class IpcRecordTask;
  friend class IpcWaitTask;

  void check_usable(const Stream* stream) const;  // throws when the process that made it let go of it
  bool latest(IpcRecord& out) const;
  std::shared_ptr<SyncPoint> point_of(const IpcRecord& latest);
  uint32_t take_slot() const;
  uint32_t take_free_slot() const;   // kSlots: there is none
  void take_back_from_dead() const;  // slots that nobody will settle
  void retire(uint64_t latest) const;
  void settle(const IpcRecord& record, uint32_t how) const;
  bool is_lost(const IpcRecord& record) const;
  bool reached(const IpcRecord& record) const;
  void check_not_lost(const IpcRecord& record) const;
  std::atomic<uint32_t>& word(const IpcRecord& record) const { return page_->slots[record.slot]; }

  const std::shared_ptr<IpcEventPage> page_;
  const uint64_t inode_;
  const std::shared_ptr<Import> import_;
  std::mutex point_mutex_;
  std::shared_ptr<SyncPoint> point_;  // of the latest record that this process dealt with
};

// The events that this process made.
class IpcEventPool {
 public:
  std::shared_ptr<IpcEvent> make();
  void give_back(uint32_t index);
  int fd() const { return fd_; }

 private:
  std::mutex mutex_;
  int fd_ = -1;
  std::shared_ptr<IpcEventPage> page_;
  std::bitset<IpcEventPage::kEvents> used_;
  uint32_t next_ = 0;
};

std::shared_ptr<IpcEvent> open_ipc_event(const aclrtIpcEventHandle& handle);
void export_ipc_event(const IpcEvent& event, aclrtIpcEventHandle& handle);

}  // namespace emu
