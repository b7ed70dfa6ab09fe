// From one piece of memory to another when no single copy of a stream does it: over a device buffer where
// host memory meets a peer's device memory, over a page-locked buffer where it meets memory that only threads
// can copy. Long copies go in pieces as large as those buffers.
//
//   device   -> device, peer's device       one copy
//   device   -> page-locked host memory     one copy
//   peer's   -> page-locked                 peer's -> device buffer -> page-locked
//   device   -> pageable, foreign           device -> page-locked buffer -> (host function) pageable, foreign
//   host     -> host                        host function
//
// and the same backwards. Buffers serve one stream, whose order makes their re-use safe: the link's staging
// stream has a set for its whole transfers, and a layered one, which waits on a stream of its own, borrows
// another.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "acl/stream.h"
#include "link/lane.h"
#include "transport/transport.h"

namespace datadist {

struct Compared;

constexpr size_t kComparedBytes = 256 << 10;  // of one comparison, at each end

// Host functions that copy and compare, in the order in which they were queued. After one failed the rest do
// nothing. The runtime holds only its number: a function that runs after its stream was given up finds
// nobody.
class HostCopies {
 public:
  // `wake`: called where a mark was passed or a copy failed.
  static std::shared_ptr<HostCopies> make(std::function<void()> wake);

  Step step(const Place& dst, const Place& src, size_t bytes);  // feeding thread
  // Fails where two pieces of page-locked memory differ, which begin so far behind the beginning of `what`.
  Step compare(const char* src, const char* dst, size_t bytes, const Compared& what, size_t offset);
  // Of a sum over bytes: adds some; ends it, as it is told or compared with what was told at `word`. What
  // differs fails as the transfer's layer of that number.
  Step add_to_sum(const char* bytes, size_t count);
  Step tell_sum(uint64_t* word);
  Step check_sum(const uint64_t* word, int64_t layer);
  Step mark();       // counts what was done up to here
  Step last_mark();  // likewise; nothing comes behind it
  std::optional<std::string> failure() const;
  size_t passed_marks() const;
  bool has_passed_last_mark() const;
  // Nothing is copied any more when this returns.
  void close();

 private:
  struct Job {
    enum Kind : uint8_t { kBytes, kAddToSum, kTellSum, kCheckSum };
    Place dst = {};
    Place src = {};
    size_t bytes = 0;  // 0: a mark
    Kind kind = kBytes;
    int64_t layer = 0;
    bool is_last = false;
    std::shared_ptr<const Compared> compared = nullptr;  // of two pieces; nullptr: a copy
    size_t offset = 0;
  };
  explicit HostCopies(std::function<void()> wake) : wake_(std::move(wake)) {}
  std::optional<std::string> run(const Job& job);
  static void run_next(void* number);
  void run_next();
  Step add(Job job);

  const std::function<void()> wake_;
  int64_t number_ = 0;
  std::mutex running_;  // held while bytes are copied
  mutable std::mutex mutex_;
  std::deque<Job> jobs_;
  uint64_t sum_ = 0;  // with `running_`
  size_t passed_marks_ = 0;
  bool has_passed_last_mark_ = false;
  std::optional<std::string> failure_;
};

struct RouteNeeds {
  bool device_buffer = false;
  bool host_buffer = false;
  bool host_copies = false;
  bool has_host_end = false;  // a copy from or to host memory, though it may need nothing else
  bool comparison = false;    // both ends are read back and compared

  bool buffers() const { return device_buffer || host_buffer || comparison; }
  bool any() const { return buffers() || host_copies; }
  void add(const RouteNeeds& other);
};

RouteNeeds needs_of(Reach src, Reach dst);
RouteNeeds needs_of_comparison(Reach src, Reach dst);

// What the buffers of all links of an instance may take together, device and host.
class StagingBudget {
 public:
  explicit StagingBudget(size_t limit_bytes) : limit_bytes_(limit_bytes) {}
  // LLM_LINK_BUSY when that is more than there is left. What it returns gives it back.
  std::shared_ptr<void> take(size_t bytes);

 private:
  const size_t limit_bytes_;
  const std::shared_ptr<std::atomic<size_t>> taken_ = std::make_shared<std::atomic<size_t>>(0);
};

// The buffers of one stream, each made when it is first needed.
struct Staging {
  explicit Staging(size_t bytes_of_each) : bytes(bytes_of_each) {}

  const size_t bytes;  // of each
  DeviceMemory device;
  std::unique_ptr<acl::PinnedBuffer> host;
  std::unique_ptr<acl::PinnedBuffer> compared;  // kComparedBytes of either end
  std::shared_ptr<void> device_share;           // of the budget
  std::shared_ptr<void> host_share;
  std::shared_ptr<void> compared_share;

  void prepare(const RouteNeeds& needs, int device_index, StagingBudget& budget);  // feeding thread
  std::unique_ptr<Staging> take_buffers();                                         // leaves it without any
};

class Route {
 public:
  Route(const Staging* staging, HostCopies* copies) : staging_(staging), copies_(copies) {}

  void begin(const Place& dst, const Place& src, size_t bytes);
  // The next step of it; false when there is none left.
  bool next(Step* step);

 private:
  Place at(size_t stop) const;

  const Staging* const staging_;
  HostCopies* const copies_;
  std::array<Place, 4> stops_;
  size_t last_stop_ = 0;
  size_t stop_ = 0;
  size_t piece_ = 0;  // bytes
  size_t done_ = 0;
  size_t bytes_ = 0;
};

}  // namespace datadist
