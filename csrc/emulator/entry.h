#pragma once

#include <atomic>
#include <cstdint>
#include <new>

#include "emulator/error.h"
#include "emulator/observer.h"
#include "emulator/thread.h"

namespace emu {

enum class Needs : uint8_t { Nothing, Init, Context, Work, Refused };

enum class Entry : uint16_t {
#define ENTRY(name, needs) name,
#include "emulator/entry_table.inc"
#undef ENTRY
  kCount
};

// The mutable half of a row of the table.
struct EntryState {
  std::atomic<uint64_t> calls{0};
};

const char* name_of(Entry entry);
Entry entry_named(const char* name);  // Entry::kCount when there is none

// Everything that is the same for all entry points: counters, injected faults, fork, init and context checks.
// Throws Error.
void begin(Entry entry, Thread& self);

aclError report(Entry entry, Thread& self, const Error& error);
aclError report(Entry entry, Thread& self, aclError code);

// The body of an entry point while somebody watches.
template <class Body>
aclError watched(Entry entry, Body&& body) {
  Observer* const watching = observer();
  watching->call_begun(name_of(entry));
  try {
    const aclError code = body();
    watching->call_ended(name_of(entry), code);
    return code;
  } catch (const Error& error) {
    watching->call_ended(name_of(entry), error.code);
    throw;
  }
}

// Holds a call up that a fault made late, when its effect is there already.
class Late {
 public:
  explicit Late(Thread& self) : self_(self) {}
  ~Late() {
    if (!self_.late.empty()) [[unlikely]]
      wait();
  }
  Late(const Late&) = delete;
  Late& operator=(const Late&) = delete;

 private:
  void wait();
  Thread& self_;
};

// Runs the body of an entry point. No exception and no half-set error state leaves the C interface.
template <class Body>
aclError enter(Entry entry, Body&& body) {
  Thread& self = Thread::self();
  const Late late(self);
  try {
    begin(entry, self);
    const aclError code = observer() == nullptr ? body() : watched(entry, body);
    return code == ACL_SUCCESS ? code : report(entry, self, code);
  } catch (const Error& error) {
    return report(entry, self, error);
  } catch (const std::bad_alloc&) {
    return report(entry, self, Error{ACL_ERROR_BAD_ALLOC, "the host is out of memory"});
  }
}

}  // namespace emu

// extern "C" aclError f(...) { return ENTER(f, { ...; return ACL_SUCCESS; }); }
#define ENTER(function, ...) ::emu::enter(::emu::Entry::function, [&]()->aclError __VA_ARGS__)
