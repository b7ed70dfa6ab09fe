// What a receiver set up for a ticket that may go packed: where its blocks belong, and the program that
// scatters them as they land.
//
//   kWaiting --(goes packed, ids known, window free)--> kRunning --(all scattered)--> kOver
//      |            it goes direct, or was cut --------------------------------------^  |
//      kRunning --cut: the stream is taken away, nothing more is scattered---> kCut ----+
//
// The program runs in a context of the link's for that alone, on a stream that touches local memory, but for
// the credit that it gives back behind each chunk. Only where its stream got to is a block written; the bytes
// of a sender that was given up stay in staging.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "cache/cache.h"
#include "link/inspection.h"
#include "link/lane.h"
#include "link/link.h"
#include "link/tick.h"

namespace datadist {

class Expectation : public std::enable_shared_from_this<Expectation> {
 public:
  struct Layers {
    int64_t first = 0;
    int64_t count = 0;
    int64_t tensors_per_layer = 0;
  };

  // `ids`: one per block of the sender's list, checked; or none, when they are still on their way from device
  // memory to `read`, of `count`, whose `ready` then becomes 1.
  Expectation(std::shared_ptr<Link> link, SlotUse use, OfferWord offer, std::shared_ptr<LocalCache> cache,
              Layers layers, std::vector<int64_t> ids, bool is_proven);
  ~Expectation();

  // Device ids: where the caller's stream puts them, and the word that it writes behind them. Before anybody
  // else knows this object.
  void await_ids();
  int64_t* ids_to_read() const { return ids_->ids(); }
  char* ids_are_read() const { return ready_->address; }
  const std::shared_ptr<std::atomic<bool>>& reading_is_refused() const { return refused_; }
  size_t blocks() const { return offer_.blocks; }

  // Starts the program where everything is there. `is_packed`: the sender said so.
  void start_if_ready(bool is_packed);
  // Watchdog. `sent`: the sender's last word on this use of the slot, or none. `is_reported`: who bound the
  // ticket has been told of bad ids, without which nothing starts.
  void tick(const Tick& tick, SentWord sent, bool is_reported);
  void cut();
  // The sender writes no more of it, so another ticket may have its window.
  void sender_is_done();

  // Nothing of it is on a stream, and nothing will be.
  bool is_over() const;
  // It goes, or went, another way: its blocks are the sender's to write.
  bool is_direct() const;
  // Entries that name no block, or one twice; they were skipped.
  std::optional<std::string> bad_ids() const;
  // Of a proven one, (code, why): other bytes were scattered than were sent, or it could not be looked at.
  std::optional<std::pair<int64_t, std::string>> failure() const;

 private:
  class Program;
  enum class State { kWaiting, kRunning, kCut, kOver };

  bool are_ids_read() const { return !ready_ || is_read_ || refused_->load(); }
  void read_ids();
  void submission_ended(uint64_t mark, int64_t code, const std::string& what);
  void end();

  const std::shared_ptr<Link> link_;
  const SlotUse use_;
  const OfferWord offer_;
  const Layers layers_;
  const bool is_proven_;
  std::shared_ptr<LocalCache> cache_;  // pinned until it is over
  std::vector<std::string> spans_;     // per layer, when a profiler recorded the call

  mutable std::mutex mutex_;
  State state_ = State::kWaiting;
  std::shared_ptr<Lane> lane_;
  std::vector<int64_t> list_;
  std::unique_ptr<IdBuffer> ids_;
  std::unique_ptr<Inspection> inspection_;
  std::optional<std::pair<int64_t, std::string>> failure_;
  std::optional<Word> ready_;
  const std::shared_ptr<std::atomic<bool>> refused_ = std::make_shared<std::atomic<bool>>(false);
  bool is_read_ = false;
  std::optional<std::string> bad_;
  bool is_reported_ = false;
  bool is_packed_ = false;
  bool submission_has_ended_ = false;
  uint64_t mark_ = 0;
  bool sender_is_done_ = false;
};

// Sets it up: CacheManager.expect. The ids are host memory, or, with `on_device`, arrive as Expectation says;
// nullptr when the ticket goes where its sender says.
class Ticket;
std::shared_ptr<Expectation> make_expectation(const std::shared_ptr<Ticket>& ticket, const int64_t* ids,
                                              size_t count, bool on_device);

}  // namespace datadist
