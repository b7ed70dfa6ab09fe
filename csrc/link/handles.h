// Handles are what Python and graphs hold instead of pointers. A stale one is noticed and named, never
// followed.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>

#include "error.h"
#include "link/forked.h"
#include "messages/messages.h"

namespace datadist {

// Handles that count up and are never given out twice.
template <typename T>
class HandleTable {
 public:
  explicit HandleTable(const char* noun) : noun_(noun) {}

  int64_t add(std::shared_ptr<T> object) {
    std::lock_guard lock(mutex_);
    objects_[next_] = std::move(object);
    return next_++;
  }

  std::shared_ptr<T> get(int64_t handle, const char* asked) const {
    require_not_forked(asked);
    std::lock_guard lock(mutex_);
    const auto found = objects_.find(handle);
    if (found == objects_.end())
      refuse(Message::no_such_handle,
             {{"asked", asked},
              {"noun", noun_},
              {"value", handle},
              {"why", (handle > 0 && handle < next_) ? "; it was closed or freed" : ""}});
    return found->second;
  }

  // nullptr when there is none.
  std::shared_ptr<T> find(int64_t handle) const {
    std::lock_guard lock(mutex_);
    const auto found = objects_.find(handle);
    return found == objects_.end() ? nullptr : found->second;
  }

  std::shared_ptr<T> remove(int64_t handle) {
    if (is_forked_child()) return nullptr;
    std::lock_guard lock(mutex_);
    const auto found = objects_.find(handle);
    if (found == objects_.end()) return nullptr;
    auto object = std::move(found->second);
    objects_.erase(found);
    return object;
  }

 private:
  const char* noun_;
  mutable std::mutex mutex_;
  int64_t next_ = 1;
  std::map<int64_t, std::shared_ptr<T>> objects_;
};

// Handles of 20 bits, because a ticket carries one: an index that is used again, under the next generation.
template <typename T>
class CompactTable {
 public:
  static constexpr int64_t kIndices = 1024;
  static constexpr int64_t kGenerations = 1024;

  int64_t add(std::shared_ptr<T> object) {
    std::lock_guard lock(mutex_);
    for (int64_t tried = 0; tried < kIndices; ++tried) {
      Entry& entry = entries_[next_];
      const int64_t index = next_;
      next_ = (next_ + 1) % kIndices;
      if (entry.is_in_use) continue;
      entry.generation = entry.generation % (kGenerations - 1) + 1;
      entry.object = std::move(object);
      entry.is_in_use = true;
      return entry.generation * kIndices + index;
    }
    refuse(Message::too_many_links, {{"value", kIndices}});
  }

  // nullptr for a handle whose index serves another object, or that was never given out.
  std::shared_ptr<T> find(int64_t handle) const {
    std::lock_guard lock(mutex_);
    if (handle < 0) return nullptr;
    const Entry& entry = entries_[handle % kIndices];
    return entry.generation == handle / kIndices ? entry.object : nullptr;
  }

  // The index may serve another object from now on; until it does, the handle still finds this one.
  void release(int64_t handle) {
    std::lock_guard lock(mutex_);
    Entry& entry = entries_[handle % kIndices];
    if (entry.generation == handle / kIndices) entry.is_in_use = false;
  }

 private:
  struct Entry {
    int64_t generation = 0;
    bool is_in_use = false;
    std::shared_ptr<T> object;
  };
  mutable std::mutex mutex_;
  int64_t next_ = 0;
  std::array<Entry, kIndices> entries_;
};

}  // namespace datadist
