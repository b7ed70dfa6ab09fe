// How many streams the links of one device hold together in this process: a device has 1984 in all, for every
// process and library that uses it.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <set>

namespace datadist {

class StreamBudget {
 public:
  // One share for one stream, given back with the last reference. nullptr when all are taken.
  std::shared_ptr<void> take();
  // Whether or not there is one left: what must not wait for others. It counts.
  std::shared_ptr<void> take_anyway();
  size_t limit() const { return limit_.load(); }

  // What one instance asks for, as long as it lives: the least of all that there are holds.
  void add_limit(size_t streams);
  void remove_limit(size_t streams);

 private:
  std::shared_ptr<void> share() const;
  void settle();  // with the lock

  const std::shared_ptr<std::atomic<size_t>> taken_ = std::make_shared<std::atomic<size_t>>(0);
  std::mutex mutex_;
  std::multiset<size_t> limits_;
  std::atomic<size_t> limit_{SIZE_MAX};
};

}  // namespace datadist
