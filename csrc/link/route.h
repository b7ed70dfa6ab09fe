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
// and the same backwards. All pieces of a link that use its buffers are queued on one stream, whose order
// makes their re-use safe.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "acl/stream.h"
#include "link/lane.h"
#include "transport/transport.h"

namespace datadist {

constexpr size_t kStagingBytes = 2 << 20;

// The buffers of one link, each made when it is first needed.
struct Staging {
  DeviceMemory device;
  std::unique_ptr<acl::PinnedBuffer> host;
};

// Copies by host functions, made in the order in which they were queued. After one failed the rest do
// nothing.
class HostCopies {
 public:
  Step step(const Place& dst, const Place& src, size_t bytes);  // feeding thread
  std::optional<std::string> failure() const;

 private:
  struct Job {
    Place dst;
    Place src;
    size_t bytes;
  };
  static void run_next(void* copies);
  void run_next();

  mutable std::mutex mutex_;
  std::deque<Job> jobs_;
  std::optional<std::string> failure_;
};

struct RouteNeeds {
  bool device_buffer = false;
  bool host_buffer = false;
  bool host_copies = false;

  bool any() const { return device_buffer || host_buffer || host_copies; }
  void add(const RouteNeeds& other);
};

RouteNeeds needs_of(Reach src, Reach dst);

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
