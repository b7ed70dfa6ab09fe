// What the core queues on streams, and how it waits for them. The calls return the runtime's code;
// DATADIST_ACL throws it.
#pragma once

#include <cstddef>
#include <cstdint>

#include "acl/acl_rt.h"

namespace datadist::acl {

// 8 bytes of device memory, here or at a peer. The write comes after what was queued on the stream before.
aclError queue_write(void* word, uint64_t value, aclrtStream stream);
// Until the local word has reached `value`, by a signed compare that wraps around. It has no deadline of its
// own.
aclError queue_wait(void* word, uint64_t value, aclrtStream stream);
// The same until it is `value`.
aclError queue_wait_equal(void* word, uint64_t value, aclrtStream stream);
// Within device memory; either side may be a peer's.
aclError queue_copy(void* dst, const void* src, size_t bytes, aclrtStream stream);
// The same for rows at a constant distance.
aclError queue_copy_rows(void* dst, size_t dst_pitch, const void* src, size_t src_pitch, size_t width,
                         size_t height, aclrtStream stream);
// Between local device memory and host memory. With host memory that is not page-locked the call itself waits
// for the stream, so nothing of a link does that.
aclError queue_to_host(void* host, const void* device, size_t bytes, aclrtStream stream);
aclError queue_to_device(void* device, const void* host, size_t bytes, aclrtStream stream);
aclError queue_fill(void* dst, int byte, size_t bytes, aclrtStream stream);
// A function on a thread of the runtime's; it must not call the runtime.
aclError queue_call(void (*function)(void*), void* argument, aclrtStream stream);

aclError synchronize(aclrtStream stream, int timeout_ms);
// Nothing is left to run on it, be it done or failed. Its context must be current.
bool has_run_dry(aclrtStream stream);

// Makes the device's primary context the calling thread's, for good.
aclError set_device(int device);

// The same for a thread of our own: undone when the thread is.
class ThreadDevice {
 public:
  explicit ThreadDevice(int device);
  ~ThreadDevice();
  ThreadDevice(const ThreadDevice&) = delete;
  ThreadDevice& operator=(const ThreadDevice&) = delete;

 private:
  const int device_;
};

bool is_page_locked(const void* host);
// Page-locks what is mapped there, and undoes it.
aclError lock_pages(void* host, size_t bytes);
void unlock_pages(void* host);

// Lets streams of the current device reach the memory of another device of this process.
aclError enable_peer_access(int peer_device);

}  // namespace datadist::acl
