#pragma once

#include <atomic>
#include <bitset>
#include <cstdint>
#include <memory>
#include <mutex>

#include "emulator/acl_headers.h"
#include "emulator/facts.h"
#include "emulator/ipc_event_page.h"
#include "emulator/signal.h"

namespace emu {

class Import;
class Stream;

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
