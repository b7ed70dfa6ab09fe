// How bytes reach a peer. One transport object belongs to one link; it is used by that link's feeding thread,
// with the link's context current, and never holds the GIL.
//
// Contract: `map` turns what the peer exported into an address for `copy` and `write_word`, and keeps it
// valid as long as the returned handle lives. Calls that take a stream only queue; they return the runtime's
// code, and once one returned non-zero nothing more of that plan is queued. On one stream, a word that is
// written after a copy is seen by the peer after the copy's bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

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

struct Mapped : Place {
  std::shared_ptr<void> handle;  // unmaps when the last one goes
};

class Transport {
 public:
  virtual ~Transport() = default;
  virtual Mapped map(const Exported& memory, size_t bytes) = 0;
  // How `map` will reach memory of that kind, without mapping any.
  virtual Reach reach_of(MemoryKind kind) const = 0;
  virtual aclError copy(void* dst, const void* src, size_t bytes, aclrtStream stream) = 0;
  // More than one row.
  virtual aclError copy_rows(const Rows& rows, aclrtStream stream) = 0;
  // `local_word`: 8 bytes of this device that the stream may use on the way; no other stream touches them.
  virtual aclError write_word(void* remote_word, uint64_t value, void* local_word, aclrtStream stream) = 0;
};

struct DeviceMemory {
  char* address = nullptr;
  std::shared_ptr<void> owner;
};

}  // namespace datadist
