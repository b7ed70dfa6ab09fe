#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <vector>

#include "emulator/error.h"
#include "emulator/read_write_lock.h"
#include "emulator/stack.h"

namespace emu {

// Hands out opaque handles that are no addresses: kind, generation and slot. A freed or made-up handle is
// recognised without touching memory, and a slot that is used again gets another generation.
template <class T, uint8_t kKind>
class HandleTable {
 public:
  // `what` names the kind of handle in messages.
  explicit HandleTable(const char* what) : what_(what) {}

  void* add(std::shared_ptr<T> object) {
    auto made = Stack::here();
    std::unique_lock lock(mutex_);
    uint32_t index;
    // Oldest first, and only when enough are free: a stale handle should meet an empty slot.
    if (free_.size() > kKeepFree) {
      index = free_.front();
      free_.pop_front();
    } else {
      index = static_cast<uint32_t>(slots_.size());
      if (index > kMaxIndex) fail(ACL_ERROR_RT_RESOURCE_ALLOC_FAIL, "%u %s handles are live", index, what_);
      slots_.emplace_back();
    }
    slots_[index].object = std::move(object);
    slots_[index].made = std::move(made);
    return encode(index, slots_[index].generation);
  }

  // Null when the handle is not one of ours, or no longer.
  std::shared_ptr<T> find(const void* handle) const {
    std::shared_lock lock(mutex_);
    const Slot* slot = slot_of(handle);
    return slot == nullptr ? nullptr : slot->object;
  }

  std::shared_ptr<T> get(const void* handle) const {
    auto object = find(handle);
    if (object == nullptr) reject(handle);
    return object;
  }

  std::shared_ptr<T> remove(const void* handle) {
    std::unique_lock lock(mutex_);
    auto* slot = const_cast<Slot*>(slot_of(handle));
    if (slot == nullptr) return nullptr;
    auto object = std::move(slot->object);
    slot->object = nullptr;
    slot->made = nullptr;
    slot->generation = (slot->generation + 1) & kGenerationMask;
    free_.push_back(static_cast<uint32_t>(slot - slots_.data()));
    return object;
  }

  std::vector<std::shared_ptr<T>> all() const {
    std::shared_lock lock(mutex_);
    std::vector<std::shared_ptr<T>> objects;
    for (const Slot& slot : slots_) {
      if (slot.object != nullptr) objects.push_back(slot.object);
    }
    return objects;
  }

  // Calls it with each live object and where it was made.
  template <class Function>
  void each(Function&& function) const {
    std::shared_lock lock(mutex_);
    for (const Slot& slot : slots_) {
      if (slot.object != nullptr) function(*slot.object, slot.made);
    }
  }

  size_t live() const {
    std::shared_lock lock(mutex_);
    return slots_.size() - free_.size();
  }

 private:
  static constexpr uint32_t kGenerationMask = 0xFFFFFF;
  static constexpr size_t kKeepFree = 256;
  static constexpr uint32_t kMaxIndex = 0xFFFFF;

  struct Slot {
    uint32_t generation = 1;
    std::shared_ptr<T> object;
    std::shared_ptr<const Stack> made;  // null unless somebody asks for stacks
  };

  // 0x0K GGGGGG IIIII.. 00: positive and aligned, as callers expect of a pointer.
  static void* encode(uint32_t index, uint32_t generation) {
    const uint64_t bits = uint64_t{kKind} << 52 | uint64_t{generation} << 28 | uint64_t{index} << 8;
    return reinterpret_cast<void*>(bits);
  }

  const Slot* slot_of(const void* handle) const {
    const auto bits = reinterpret_cast<uint64_t>(handle);
    const uint64_t index = bits >> 8 & kMaxIndex;
    if (bits >> 52 != kKind || (bits & 0xFF) != 0 || index >= slots_.size()) return nullptr;
    const Slot& slot = slots_[index];
    if (slot.object == nullptr || slot.generation != (bits >> 28 & kGenerationMask)) return nullptr;
    return &slot;
  }

  [[noreturn]] void reject(const void* handle) const {
    fail(ACL_ERROR_RT_INVALID_HANDLE, "%p is not a live %s handle (freed already, or of another kind)",
         handle, what_);
  }

  const char* what_;
  mutable ReadWriteLock mutex_;
  std::vector<Slot> slots_;
  std::deque<uint32_t> free_;
};

}  // namespace emu
