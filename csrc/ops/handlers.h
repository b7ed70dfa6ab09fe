// What handlers need, kept for the next ones. torch_npu copies the function that it is given to queue: of a
// pointer that takes nothing from the heap.
#pragma once

#include <atomic>

namespace datadist {

// Entries go from any thread that calls an op to the one that runs its handler and back, without a lock.
// There are as many as were ever under way at a time, about, and they are never freed.
template <typename Work>
class Handlers {
 public:
  struct Entry {
    Work work;
    Entry* next = nullptr;
  };

  static Entry* take(Work work) {
    Entry*& own = own_.entries;
    if (own == nullptr) own = returned().exchange(nullptr, std::memory_order_acquire);
    if (own == nullptr) own = new Entry;
    Entry* const entry = own;
    own = entry->next;
    entry->work = std::move(work);
    return entry;
  }

  // What it held goes at once.
  static void give_back(Entry* entry) {
    entry->work = Work{};
    push(entry, entry);
  }

 private:
  static std::atomic<Entry*>& returned() {
    static std::atomic<Entry*> list{nullptr};
    return list;
  }
  // They are pushed by many and taken by one, all at once, so no address comes back under a compare.
  static void push(Entry* first, Entry* last) {
    Entry* before = returned().load(std::memory_order_relaxed);
    do last->next = before;
    while (!returned().compare_exchange_weak(before, first, std::memory_order_release,
                                             std::memory_order_relaxed));
  }

  // Of a thread that calls ops; what is left goes to the others when it ends.
  struct Own {
    Entry* entries = nullptr;
    ~Own() {
      if (entries == nullptr) return;
      Entry* last = entries;
      while (last->next != nullptr) last = last->next;
      push(entries, last);
    }
  };
  static inline thread_local Own own_;
};

}  // namespace datadist
