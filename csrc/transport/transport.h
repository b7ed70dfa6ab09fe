// How bytes reach a peer. One transport object belongs to one link; it is used by that link's feeding thread,
// with the link's context current, and never holds the GIL.
//
// Contract: `map` turns what the peer exported into an address for `copy` and `write_word`, and keeps it
// valid as long as the returned handle lives. Calls that take a stream only queue; they return the runtime's
// code, and once one returned non-zero nothing more of that plan is queued. On one stream, a word that is
// written after a copy is seen by the peer after the copy's bytes.
//
// Two families. Where the peer's memory has an address here (mapped/), streams copy to it themselves and all
// below "streams" that has a body is as it stands. Where it has none (engine/), `map` gives an address that
// only this transport understands, and what is queued leaves the stream: `flush` and `settle` tie it back.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "acl/acl_rt.h"
#include "plan/rows.h"

namespace datadist {

// How a thread, or a stream, of this process gets at a piece of memory.
enum class Reach : uint8_t {
  kDevice,    // memory of this device: any copy of a stream
  kImported,  // of another device or process: copies between devices only
  kPinned,    // page-locked host memory, or another process's that is mapped here: copies from and to kDevice
  kPageable,  // host memory of this process that only its threads may copy
  kForeign,   // private host memory of another process: read and written through a file
  kEngine,    // whatever memory of a peer: the transport copies between it and any of ours
};

inline bool is_on_device(Reach reach) { return reach == Reach::kDevice || reach == Reach::kImported; }

struct Place {
  char* address = nullptr;
  Reach reach = Reach::kDevice;
  int file = -1;  // of kForeign: what is at `address` there is at that offset in it
};

enum class MemoryKind : uint8_t { kDevice = 0, kSharedHost = 1, kPrivateHost = 2 };

// One piece of memory as a peer gets to know it: an export handle of the segment around it (binary; empty for
// private host memory), its offset in that segment, and the bare address, which an instance of the same
// process uses, and of private host memory any peer.
struct Exported {
  std::string handle;
  int64_t offset = 0;
  uint64_t address = 0;
  MemoryKind kind = MemoryKind::kDevice;
};

// A piece of our own memory.
struct OwnMemory {
  Place place;
  size_t bytes = 0;
};

struct Mapped : Place {
  std::shared_ptr<void> handle;  // unmaps when the last one goes
};

class Transport {
 public:
  virtual ~Transport() = default;

  // --- set-up; any thread
  virtual const char* name() const = 0;
  // What the peer's transport needs for `connect`, which comes before all that is below; empty: nothing.
  virtual std::string address() { return {}; }
  virtual void connect(const std::string& peer_address) { (void)peer_address; }
  // Lets the peer reach memory of ours; throws LLM_PARAM_INVALID for memory that it cannot.
  virtual std::vector<Exported> export_memory(const std::vector<OwnMemory>& memory) = 0;
  // Copies of ours will read or write it; again and again, so cheap when it is known.
  virtual void use_memory(const OwnMemory& memory) { (void)memory; }
  // It is about to be freed: nobody copies from or to it any more.
  virtual void forget_memory(char* address) { (void)address; }

  // --- the peer's memory
  virtual Mapped map(const Exported& memory, size_t bytes) = 0;
  // How `map` will reach memory of that kind, without mapping any.
  virtual Reach reach_of(MemoryKind kind) const = 0;

  // --- streams
  virtual aclError copy(void* dst, const void* src, size_t bytes, aclrtStream stream) = 0;
  // More than one row.
  virtual aclError copy_rows(const Rows& rows, aclrtStream stream) = 0;
  // `local_word`: 8 bytes of this device that the stream may use on the way; no other stream touches them.
  virtual aclError write_word(void* remote_word, uint64_t value, void* local_word, aclrtStream stream) = 0;
  // What was queued up to here may leave, once the stream has come so far.
  virtual aclError flush(aclrtStream stream) {
    (void)stream;
    return 0;
  }
  // Holds the stream here until all that was queued on it has been done: bytes of a push are in place, bytes
  // of a pull are here, and nothing of it reads memory of ours any more. If it fails the stream stays here.
  virtual aclError settle(aclrtStream stream) {
    (void)stream;
    return 0;
  }
  // The stream is gone. True once nothing that was queued on it touches memory at either end any more; then
  // the stream is forgotten. False: ask again.
  virtual bool drop(aclrtStream stream) {
    (void)stream;
    return true;
  }

  // --- watchdog
  // Why it cannot go on: the link is lost.
  virtual std::optional<std::string> failure() const { return std::nullopt; }
  // Words that were written have left this process.
  virtual bool has_sent_all() const { return true; }
  // `sever` ends what it does on threads of its own, and `is_severed` says that it is done: nothing more is
  // sent, or written here by this process.
  virtual void sever() {}
  virtual bool is_severed() const { return true; }
  // Severed, and with that the peer's access to our memory has ended, whatever becomes of the peer; and
  // whether that can be had at all.
  virtual bool can_cut_off() const { return false; }
  bool is_cut_off() const {
    const auto flag = cut_off();
    return flag != nullptr && *flag;
  }
  // For those who ask when the link is gone; nullptr where it cannot be had.
  virtual std::shared_ptr<const std::atomic<bool>> cut_off() const { return nullptr; }
};

struct DeviceMemory {
  char* address = nullptr;
  std::shared_ptr<void> owner;
};

}  // namespace datadist
