// The receiver's side of a direct push that is proven (proof.h): reads which blocks it wrote, then looks at
// each layer as it arrives and sets its flag.
//
//   kSetUp --(stream and buffers taken)--> kListing --(list read, checked)--> kRunning --(all same)--> kOver
//      |                                      | cut: the stream is taken away --> kCut ------------------^
//      cut ---------------------------------------------------------------------------------------------^
#pragma once

#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>

#include "cache/cache.h"
#include "link/inspection.h"

namespace datadist {

class ProvenPush : public std::enable_shared_from_this<ProvenPush> {
 public:
  ProvenPush(std::shared_ptr<Link> link, SlotUse use, int64_t first_layer, int64_t layers)
      : link_(std::move(link)), use_(use), first_layer_(first_layer), layers_(layers) {}

  // Watchdog.
  void tick(const Tick& tick);
  void cut();
  bool is_over() const;  // nothing of it is on a stream, and nothing will be
  // (code, why) when something else arrived than was sent, or it could not be looked at.
  std::optional<std::pair<int64_t, std::string>> failure() const;

 private:
  class SetUp;
  class Listing;
  class Looking;
  enum class State { kNew, kSetUp, kListing, kRunning, kCut, kOver };

  void set_up();     // feeding thread
  void read_list();  // with the lock
  void end();        // with the lock
  void looking_ended(uint64_t mark);
  void refused(int64_t code, const std::string& what);  // any of its programs

  const std::shared_ptr<Link> link_;
  const SlotUse use_;
  const int64_t first_layer_;
  const int64_t layers_;

  mutable std::mutex mutex_;
  State state_ = State::kNew;
  std::shared_ptr<Lane> lane_;
  std::unique_ptr<Inspection> inspection_;
  std::optional<Word> is_listed_;
  ProvenList list_;
  std::shared_ptr<LocalCache> cache_;  // pinned until it is over
  std::optional<uint64_t> mark_;       // behind all of it
  std::optional<std::pair<int64_t, std::string>> failure_;
};

}  // namespace datadist
