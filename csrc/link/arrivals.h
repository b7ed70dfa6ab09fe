// Objects on their way to the one thread that takes them: from any thread, without a lock and without the
// heap, since each brings what the list needs.
#pragma once

#include <atomic>
#include <memory>
#include <utility>

namespace datadist {

template <typename T>
class Arrivals {
 public:
  // A member of T; in one list at a time.
  class Hook {
    friend class Arrivals;
    std::shared_ptr<T> itself_;
    T* before_ = nullptr;
  };
  explicit Arrivals(Hook T::* hook) : hook_(hook) {}

  void push(const std::shared_ptr<T>& object) {
    Hook& hook = hook_of(object.get());
    hook.itself_ = object;
    hook.before_ = last_.load();
    while (!last_.compare_exchange_weak(hook.before_, object.get()));
  }
  bool empty() const { return last_.load() == nullptr; }
  // Those that have come by now, in the order in which they came.
  template <typename Use>
  void take(Use use) {
    T* first = nullptr;
    for (T* last = last_.exchange(nullptr); last != nullptr;)
      first = std::exchange(last, std::exchange(hook_of(last).before_, first));
    while (first != nullptr) {
      Hook& hook = hook_of(first);
      first = std::exchange(hook.before_, nullptr);
      std::shared_ptr<T> object = std::move(hook.itself_);
      use(std::move(object));
    }
  }

 private:
  Hook& hook_of(T* object) const { return object->*hook_; }

  Hook T::* const hook_;
  std::atomic<T*> last_{nullptr};
};

}  // namespace datadist
