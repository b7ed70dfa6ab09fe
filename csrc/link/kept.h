// Memory of objects that come and go with each op, kept for the next ones of their type. It goes from any
// thread that makes one to any that destroys it and back, without a lock and without the heap: there is as
// much of it as was ever in use at a time, about, and it is never freed.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <memory>
#include <utility>

namespace datadist {

// An allocator of one object at a time: for std::allocate_shared, and for those below.
template <typename T>
class Kept {
 public:
  using value_type = T;

  Kept() = default;
  template <typename Other>
  Kept(const Kept<Other>&) {}
  bool operator==(const Kept&) const = default;

  T* allocate(size_t) {
    Spare*& own = own_.spares;
    if (own == nullptr) own = returned().exchange(nullptr, std::memory_order_acquire);
    if (own == nullptr) return reinterpret_cast<T*>(std::allocator<Spare>().allocate(1));
    return reinterpret_cast<T*>(std::exchange(own, own->next));
  }
  void deallocate(T* object, size_t) {
    auto* const spare = reinterpret_cast<Spare*>(object);
    push(spare, spare);
  }

  static T* make(T object) { return std::construct_at(Kept().allocate(1), std::move(object)); }
  static void destroy(T* object) {
    std::destroy_at(object);
    Kept().deallocate(object, 1);
  }

 private:
  union Spare {
    Spare* next;
    alignas(T) std::byte memory[sizeof(T)];
  };

  static std::atomic<Spare*>& returned() {
    static std::atomic<Spare*> list{nullptr};
    return list;
  }
  // They are pushed by many and taken by one, all at once, so no address comes back under a compare.
  static void push(Spare* first, Spare* last) {
    Spare* before = returned().load(std::memory_order_relaxed);
    do last->next = before;
    while (!returned().compare_exchange_weak(before, first, std::memory_order_release,
                                             std::memory_order_relaxed));
  }

  // Of a thread that makes objects; what is left goes to the others when it ends.
  struct Own {
    Spare* spares = nullptr;
    ~Own() {
      Spare* const first = std::exchange(spares, nullptr);
      if (first == nullptr) return;
      Spare* last = first;
      while (last->next != nullptr) last = last->next;
      push(first, last);
    }
  };
  static inline thread_local Own own_;
};

// An allocator of lists that come and go like that, unless they are long.
template <typename T>
class KeptList {
 public:
  using value_type = T;

  KeptList() = default;
  template <typename Other>
  KeptList(const KeptList<Other>&) {}
  bool operator==(const KeptList&) const = default;

  T* allocate(size_t count) {
    if (count <= kFew) return reinterpret_cast<T*>(Kept<Array<kFew>>().allocate(1));
    if (count <= kMany) return reinterpret_cast<T*>(Kept<Array<kMany>>().allocate(1));
    return std::allocator<T>().allocate(count);
  }
  void deallocate(T* list, size_t count) {
    if (count <= kFew) return Kept<Array<kFew>>().deallocate(reinterpret_cast<Array<kFew>*>(list), 1);
    if (count <= kMany) return Kept<Array<kMany>>().deallocate(reinterpret_cast<Array<kMany>*>(list), 1);
    std::allocator<T>().deallocate(list, count);
  }

 private:
  static constexpr size_t kFew = 4;
  static constexpr size_t kMany = 128;
  template <size_t kCount>
  using Array = std::array<T, kCount>;
};

template <typename T, typename... Arguments>
std::shared_ptr<T> make_kept(Arguments&&... arguments) {
  return std::allocate_shared<T>(Kept<T>(), std::forward<Arguments>(arguments)...);
}

}  // namespace datadist
