// Handles are what Python and graphs hold instead of pointers. A stale one is noticed and named, never
// followed.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <vector>

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
    std::shared_lock lock(mutex_);
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
    std::shared_lock lock(mutex_);
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
  mutable std::shared_mutex mutex_;  // ops only look up, side by side
  int64_t next_ = 1;
  std::map<int64_t, std::shared_ptr<T>> objects_;
};

// Handles of 20 bits, because a ticket carries one: an index that is used again, under the next generation.
// Each index has a lock of its own, so that ops of two objects never meet at one. What was released last is
// kept, since it knows why it ended; the rest of the released goes when another object comes.
template <typename T>
class CompactTable {
 public:
  static constexpr int64_t kIndices = 1024;
  static constexpr int64_t kGenerations = 1024;
  static constexpr size_t kKept = 32;  // of the released

  int64_t add(std::shared_ptr<T> object) {
    const auto forgotten = forget();  // goes without the locks
    std::lock_guard lock(mutex_);
    for (int64_t tried = 0; tried < kIndices; ++tried) {
      Entry& entry = entries_[next_];
      const int64_t index = next_;
      next_ = (next_ + 1) % kIndices;
      std::lock_guard own(entry.mutex);
      if (entry.is_in_use) continue;
      entry.generation = entry.generation % (kGenerations - 1) + 1;
      entry.object.swap(object);  // what it held goes without the locks
      entry.is_in_use = true;
      return entry.generation * kIndices + index;
    }
    refuse(Message::too_many_links, {{"value", kIndices}});
  }

  // nullptr for a handle whose index serves another object, or whose object is forgotten, or that was never
  // given out.
  std::shared_ptr<T> find(int64_t handle) const {
    if (handle < 0) return nullptr;
    const Entry& entry = entries_[handle % kIndices];
    std::lock_guard lock(entry.mutex);
    return entry.generation == handle / kIndices ? entry.object : nullptr;
  }

  // The index may serve another object from now on; the handle still finds this one for a while.
  void release(int64_t handle) {
    std::lock_guard lock(mutex_);
    Entry& entry = entries_[handle % kIndices];
    std::lock_guard own(entry.mutex);
    if (entry.generation != handle / kIndices || !entry.is_in_use) return;
    entry.is_in_use = false;
    released_.push_back(handle);
  }

 private:
  struct Entry {
    mutable std::mutex mutex;
    int64_t generation = 0;
    bool is_in_use = false;
    std::shared_ptr<T> object;
  };

  std::vector<std::shared_ptr<T>> forget() {
    std::vector<std::shared_ptr<T>> forgotten;
    std::lock_guard lock(mutex_);
    for (; released_.size() > kKept; released_.pop_front()) {
      Entry& entry = entries_[released_.front() % kIndices];
      std::lock_guard own(entry.mutex);
      if (entry.generation == released_.front() / kIndices) forgotten.push_back(std::move(entry.object));
    }
    return forgotten;
  }

  std::mutex mutex_;  // of those who add and release
  std::deque<int64_t> released_;
  int64_t next_ = 0;
  std::array<Entry, kIndices> entries_;
};

}  // namespace datadist
