#include "emulator_hixl/faults.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <map>
#include <mutex>
#include <string>

#include "hixl_abi/hixl.h"

namespace emu_hixl {
namespace {

constexpr uint32_t kMostLinks = 512;
constexpr auto kLook = std::chrono::milliseconds(20);  // how long a held batch may overlook its end

struct Method {
  const char* name;
  int64_t calls = 0;
  int fails_in = 0;
  uint32_t code = 0;
};

struct State {
  std::mutex mutex;
  std::condition_variable changed;
  Method methods[10] = {{"Initialize"},        {"Finalize"},     {"RegisterMem"},  {"DeregisterMem"},
                        {"Connect"},           {"Disconnect"},   {"TransferSync"}, {"TransferAsync"},
                        {"GetTransferStatus"}, {"GetCapability"}};
  int64_t hold_after = -1;
  uint64_t hold_from = 0;
  uint64_t hold_to = 0;
  int held = 0;
  uint32_t most_links = kMostLinks;
  std::map<std::string, std::string> options;

  Method* method(const char* name) {
    for (Method& method : methods) {
      if (name != nullptr && std::strcmp(method.name, name) == 0) return &method;
    }
    return nullptr;
  }
};

// Never destroyed: threads of the library may still run when the process ends.
State& state() {
  static auto* state = new State;
  return *state;
}

thread_local char message[512] = "";

}  // namespace

uint32_t enter(const char* method) {
  std::lock_guard lock(state().mutex);
  message[0] = '\0';
  Method& called = *state().method(method);
  ++called.calls;
  if (called.fails_in == 0 || --called.fails_in > 0) return 0;
  std::snprintf(message, sizeof message, "%s: fails on demand", method);
  return called.code;
}

uint32_t refuse(uint32_t code, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(message, sizeof message, format, arguments);
  va_end(arguments);
  return code;
}

size_t let_move(uint64_t address, uint64_t moved, size_t wanted, bool (*is_over)(const void*),
                const void* argument) {
  std::unique_lock lock(state().mutex);
  const auto is_held = [&] {
    if (state().hold_after >= 0 && moved >= static_cast<uint64_t>(state().hold_after)) return true;
    return address < state().hold_to && address + wanted > state().hold_from;
  };
  if (is_held()) {
    ++state().held;
    while (is_held() && !is_over(argument)) state().changed.wait_for(lock, kLook);
    --state().held;
  }
  if (is_held()) return 0;
  if (state().hold_after < 0) return wanted;
  return std::min<uint64_t>(wanted, static_cast<uint64_t>(state().hold_after) - moved);
}

uint32_t most_links() {
  std::lock_guard lock(state().mutex);
  return state().most_links;
}

void keep_option(const char* key, const char* value) {
  std::lock_guard lock(state().mutex);
  state().options[key] = value;
}

}  // namespace emu_hixl

using namespace emu_hixl;

uint32_t emuHixlFailNext(const char* method, int nth, uint32_t code) {
  std::lock_guard lock(state().mutex);
  Method* const found = state().method(method);
  if (found == nullptr || nth < 0) return hixl::kParamInvalid;
  found->fails_in = nth;
  found->code = code;
  return hixl::kOk;
}

int64_t emuHixlCalls(const char* method) {
  std::lock_guard lock(state().mutex);
  const Method* const found = state().method(method);
  return found == nullptr ? -1 : found->calls;
}

void emuHixlHold(int64_t after_bytes) {
  {
    std::lock_guard lock(state().mutex);
    state().hold_after = after_bytes;
  }
  state().changed.notify_all();
}

void emuHixlHoldAt(uint64_t address, uint64_t bytes) {
  {
    std::lock_guard lock(state().mutex);
    state().hold_from = address;
    state().hold_to = address + bytes;
  }
  state().changed.notify_all();
}

int emuHixlHeld() {
  std::lock_guard lock(state().mutex);
  return state().held;
}

void emuHixlLimitLinks(uint32_t links) {
  std::lock_guard lock(state().mutex);
  state().most_links = links == 0 ? kMostLinks : links;
}

const char* emuHixlOption(const char* key) {
  static thread_local std::string value;
  std::lock_guard lock(state().mutex);
  const auto found = state().options.find(key);
  if (found == state().options.end()) return nullptr;
  value = found->second;
  return value.c_str();
}

const char* emuHixlMessage() { return message; }
