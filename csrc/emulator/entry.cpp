#include "emulator/entry.h"

#include <array>
#include <cstdio>
#include <cstring>
#include <thread>
#include <utility>

#include "emulator/context.h"
#include "emulator/faults.h"
#include "emulator/runtime.h"

namespace emu {
namespace {

struct Row {
  const char* name;
  Needs needs;
};

constexpr std::array kTable = {
#define ENTRY(name, needs) Row{#name, Needs::needs},
#include "emulator/entry_table.inc"
#undef ENTRY
};

bool needs_context(Entry entry) {
  const Needs needs = kTable[static_cast<size_t>(entry)].needs;
  return needs == Needs::Context || needs == Needs::Work;
}

[[noreturn]] void refuse(const char* name, const EntryState& state, Thread& self) {
  const std::string wanted = std::move(self.wanted);
  self.wanted.clear();
  const std::string what = wanted.empty() ? name : text("%s('%s')", name, wanted.c_str());
  // Once per entry point, or for each operator: the caller may well swallow the code.
  if (state.calls.load() == 1 || !wanted.empty()) {
    std::fprintf(stderr, "emulated Ascend runtime: %s is not implemented; the call fails with %d\n",
                 what.c_str(), ACL_ERROR_RT_FEATURE_NOT_SUPPORT);
  }
  fail(ACL_ERROR_RT_FEATURE_NOT_SUPPORT, "%s is not implemented by the emulated Ascend runtime",
       what.c_str());
}

void check_needs(Needs needs, const Runtime& runtime, const Thread& self) {
  if (needs == Needs::Nothing) return;
  if (!runtime.initialised()) fail(ACL_ERROR_UNINITIALIZE, "aclInit was not called, or aclFinalize was");
  if (needs == Needs::Init) return;
  if (self.context == nullptr) {
    fail(
        ACL_ERROR_RT_CONTEXT_NULL,
        "this thread has no current context; each thread must call aclrtSetDevice or aclrtSetCurrentContext");
  }
  if (self.context->destroyed()) {
    fail(ACL_ERROR_RT_CONTEXT_NULL, "this thread's current context was destroyed");
  }
  if (needs == Needs::Work && self.in_host_function) {
    fail(ACL_ERROR_RT_FEATURE_NOT_SUPPORT,
         "called from inside a host function, which must not allocate, submit or wait");
  }
}

}  // namespace

const char* name_of(Entry entry) { return kTable[static_cast<size_t>(entry)].name; }

Entry entry_named(const char* name) {
  for (size_t i = 0; i < kTable.size(); ++i) {
    if (std::strcmp(kTable[i].name, name) == 0) return static_cast<Entry>(i);
  }
  return Entry::kCount;
}

void begin(Entry entry, Thread& self) {
  Runtime& runtime = Runtime::get();
  EntryState& state = runtime.entry(entry);
  state.calls.fetch_add(1, std::memory_order_relaxed);
  if (runtime.forked()) {
    fail(ACL_ERROR_INTERNAL_ERROR,
         "this process was forked after its parent used a device; start it with spawn, or fork before");
  }
  if (is_armed(bit(Fault::HoldHost)) && !self.is_device) [[unlikely]]
    runtime.faults->hold_host();
  if (is_armed(bit(Fault::BadText))) [[unlikely]]
    runtime.faults->refuse_bad_text();
  if (kTable[static_cast<size_t>(entry)].needs == Needs::Refused) refuse(name_of(entry), state, self);
  check_needs(kTable[static_cast<size_t>(entry)].needs, runtime, self);
  if (is_armed(kCallFaults)) [[unlikely]]
    runtime.faults->begin_call(entry, self);
  if (is_armed(bit(Fault::Lose)) && needs_context(entry)) [[unlikely]]
    runtime.faults->refuse_if_lost(self.context->device);
}

void Late::wait() {
  for (const FiredRule& late : std::exchange(self_.late, {})) Runtime::get().faults->hold_up(late);
}

aclError report(Entry entry, Thread& self, const Error& error) {
  self.last_error = error.code;
  if (is_armed(bit(Fault::Lose)) && self.context != nullptr) [[unlikely]]
    Runtime::get().faults->note_answer(self.context->device, error.code);
  self.message =
      text("%s: %s (%d: %s)", name_of(entry), error.message.c_str(), error.code, meaning(error.code));
  return error.code;
}

aclError report(Entry entry, Thread& self, aclError code) {
  return report(entry, self, Error{code, "failed"});
}

}  // namespace emu
