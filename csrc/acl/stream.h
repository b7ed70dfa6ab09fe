// A context and the streams in it, released in order. Streams are mode 1 (stop on failure) unless said
// otherwise: a failing copy must never be followed by the flag write that would announce it.
#pragma once

#include <cstdint>
#include <memory>

#include "acl/acl_rt.h"

namespace datadist::acl {

class Context {
 public:
  explicit Context(int device);  // becomes the calling thread's current context
  ~Context();
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;

  void make_current() const;
  int device() const { return device_; }

 private:
  int device_;
  aclrtContext handle_ = nullptr;
};

enum class OnFailure : uint64_t { kContinue = 0, kStop = 1 };

class Stream {
 public:
  Stream(const Context& context, OnFailure mode);  // the context must be current
  ~Stream();                                       // drops what is queued; the context must be current
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  aclrtStream get() const { return handle_; }
  // 0 while all is well, else the code of the failure that stopped it.
  aclError query() const;

 private:
  aclrtStream handle_ = nullptr;
};

// Tells how far a stream has come, to who asks; nothing waits for it. Recorded again and again.
class Event {
 public:
  Event();
  ~Event();
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;

  aclError record(const Stream& stream);
  // Whether the stream has come to the latest record; an error when it was stopped before.
  aclError query(bool* is_passed) const;

 private:
  aclrtEvent handle_ = nullptr;
};

// Puts the calling thread's context back when a scope ends.
class ContextScope {
 public:
  ContextScope();
  ~ContextScope();
  ContextScope(const ContextScope&) = delete;
  ContextScope& operator=(const ContextScope&) = delete;

 private:
  aclrtContext previous_ = nullptr;
};

// Page-locked host memory, so that copies to it are asynchronous.
class PinnedBuffer {
 public:
  explicit PinnedBuffer(size_t bytes);
  ~PinnedBuffer();
  PinnedBuffer(const PinnedBuffer&) = delete;
  PinnedBuffer& operator=(const PinnedBuffer&) = delete;

  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  void* data_ = nullptr;
};

// Queues the copy of `rows` rows of device memory to pinned memory.
void read_rows(char* dst, size_t dst_pitch, const char* src, size_t src_pitch, size_t width, size_t rows,
               aclrtStream stream);

}  // namespace datadist::acl
