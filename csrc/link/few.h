// A list that is short as a rule, and takes no memory from the heap then.
#pragma once

#include <array>
#include <cstddef>
#include <utility>
#include <vector>

namespace datadist {

template <typename T, size_t kInPlace = 4>
class Few {
 public:
  void push_back(T value) {
    if (size_ < kInPlace) {
      first_[size_] = std::move(value);
    } else {
      more_.push_back(std::move(value));
    }
    ++size_;
  }
  T take_last() {
    if (--size_ < kInPlace) return std::move(first_[size_]);
    T last = std::move(more_.back());
    more_.pop_back();
    return last;
  }
  size_t size() const { return size_; }
  bool empty() const { return size_ == 0; }
  const T& operator[](size_t i) const { return i < kInPlace ? first_[i] : more_[i - kInPlace]; }
  T& operator[](size_t i) { return i < kInPlace ? first_[i] : more_[i - kInPlace]; }

 private:
  std::array<T, kInPlace> first_{};
  std::vector<T> more_;
  size_t size_ = 0;
};

}  // namespace datadist
