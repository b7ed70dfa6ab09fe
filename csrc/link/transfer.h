// One transfer as its initiator sees it: from checked arguments to the last word that somebody may still
// read.
//
// A whole transfer has one start gate, written by the caller's stream. A layered one (a task) has one per
// layer, and a slot at the receiver whose flags tell of each layer. Both end with a done gate, written by the
// link's stream or, when something failed, by the watchdog after the error.
//
// A publication is a push without bytes: one start gate, a slot, one flag. It has not ended when that flag is
// written, but when the receiver said that it has pulled, or when nothing of the receiver can read any more.
// A pull with a ticket waits for that flag on a stream of its own.
#pragma once

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "cache/cache.h"
#include "link/few.h"
#include "link/kept.h"
#include "link/lane.h"
#include "link/link.h"
#include "link/pull_round.h"
#include "link/route.h"
#include "link/status.h"
#include "messages/messages.h"
#include "plan/plan.h"
#include "plan/span.h"

namespace datadist {

enum class Direction { kPush, kPull, kPublish };

struct Destination;

using Runs = std::vector<Run, KeptList<Run>>;

// Checked, planned, and not yet known to any stream.
struct TransferPlan {
  Direction direction = Direction::kPush;
  std::shared_ptr<LocalCache> local;
  std::shared_ptr<RemoteCache> remote;  // nullptr: a publication
  LayerRange local_layers;
  LayerRange remote_layers;
  Shape shape;
  Runs runs;  // in the direction in which the bytes flow
  RouteNeeds needs;
  std::chrono::milliseconds timeout{0};
  std::shared_ptr<Ticket> ticket;  // of a pull: it waits until the peer's blocks are ready
  bool by_layers = false;          // released one by one; nobody at the receiver need wait for them
  // kOffered: packed, if the receiver has said where its blocks go by the time that it is bound. kPacked: in
  // any case, however long that takes.
  enum class Way : uint8_t { kDirect, kOffered, kPacked };
  Way way = Way::kDirect;
  bool is_proven = false;  // its receiver compares what arrives (proof.h), in place of our reading it back
  std::vector<int64_t> packed_src;  // the source blocks, as they were listed
};

// A word that a caller's stream writes 1 to, and what the handler that queues this tells: that the runtime
// refused, and whom it wakes to feed what the gate starts.
struct Gate {
  char* word = nullptr;
  std::shared_ptr<std::atomic<bool>> refused;
  std::shared_ptr<Feeder> feeder;  // nullptr: it has been fed
};

class Transfer : public Boarding, public std::enable_shared_from_this<Transfer> {
 public:
  // `slot`: a layered push that somebody waits for. Takes the words it needs.
  Transfer(std::shared_ptr<Link> link, TransferPlan plan, std::optional<SlotUse> slot);
  ~Transfer() override;

  // --- the initiator
  // Hands the copies to the link's feeding thread, which whoever starts a whole transfer wakes. What waits
  // for others needs a stream of its own: LLM_LINK_BUSY when there is none. `notify_host`: somebody will
  // `wait`.
  void submit(bool notify_host, const char* asked);
  // Ends it early; what it queued on a stream of its own is cut off.
  void cancel(const std::string& why);
  // Likewise, when its initiator does not want it any more: LLM_PARAM_INVALID once it is bound, or has ended
  // in another way. A publication never counts as bound.
  void discard(const char* asked);
  // Of a layered transfer: it ends at the latest so long after its last layer was released.
  void limit(std::chrono::milliseconds timeout);
  // Blocks until it ended; (code, detail).
  std::pair<int64_t, std::string> wait();
  // The same, and whether what it had queued may still be written. It fails when the earlier work of the
  // caller's stream takes longer than `patience`.
  std::tuple<int64_t, std::string, bool> wait_for_outcome(std::chrono::milliseconds patience);
  // The state at the end or at the deadline.
  std::tuple<bool, int64_t, std::string> wait_until(Clock::time_point deadline);
  // Ended, and with an error: nothing of it is queued any more either.
  std::tuple<bool, int64_t, std::string> state() const;
  // Blocks until it ended and nothing of it is queued any more; false at the deadline, or without a watchdog.
  bool wait_drained(Clock::time_point deadline);
  // Why it failed, while it may still write there.
  std::optional<std::string> why_in_doubt(const Destination& destination);

  // --- what a caller's stream needs; each call says that the stream will write the word
  Gate start_gate_for(int64_t layer);
  // The same for a caller on the host, whose earlier work is done: the watchdog opens the gate, at once.
  void start_from_host(int64_t layer);
  Gate passed_word_for_hold();  // behind everything that reads the done gate or the status
  char* done_gate() const { return done_.address; }
  // Of a layered one: whoever relays it holds the transfer as long as its stream may write the word.
  char* start_gate(int64_t layer) const { return start_[static_cast<size_t>(layer - first_layer())].address; }
  // Before submit; whole transfers have a status and a deadline of their own.
  void bind(std::shared_ptr<Status> status, std::chrono::milliseconds timeout,
            const std::set<int64_t>& open_layers, const char* asked);
  const std::shared_ptr<Status>& status() const { return status_; }
  bool is_publication() const { return plan_.direction == Direction::kPublish; }
  bool is_layered() const { return (slot_.has_value() && !is_publication()) || plan_.by_layers; }
  // Needs a stream of its own, so that it holds up no other while it waits for a forward here or there.
  bool waits_for_others() const { return is_layered() || is_publication() || plan_.ticket != nullptr; }
  bool is_bound() const;
  bool is_drained() const;  // ended, and nothing of it is queued on a stream of ours any more
  bool is_retired() const;  // watchdog: ended, drained, and no stream reads its words any more
  int64_t layers() const { return plan_.local_layers.layers; }
  int64_t first_layer() const { return plan_.local_layers.first_layer; }
  bool carries(int64_t local_layer) const {
    return local_layer >= first_layer() && local_layer < first_layer() + layers();
  }
  int64_t ticket() const;
  // (the receiver has said where an offer goes, it goes packed for certain)
  std::pair<bool, bool> way() const;
  bool moves_host_memory() const { return moves_host_memory_; }  // on this side
  const std::shared_ptr<PullRound>& pull_round() const { return pull_round_; }
  // For a profiler's timeline, of a submitted one; empty when nobody recorded then.
  bool has_spans() const { return !spans_.empty(); }
  std::string span(int64_t local_layer) const {
    return spans_.empty() ? "" : spans_[is_layered() ? local_layer - first_layer() : 0];
  }
  Link& link() const { return *link_; }

  void board() override;

  // --- the watchdog
  void receiver_said(TakenWord taken);
  bool tick(const Tick& tick);  // true when it needs no look soon
  void clock_gap(Clock::duration gap);
  void abandon(const std::string& why);  // there is no watchdog any more

 private:
  friend class TransferProgram;
  friend class PackedProgram;
  void decide_way();
  bool is_never_expected() const;
  bool take_own_lane(const char* asked);
  void board_a_lane();
  bool takes_off();
  void submission_ended(uint64_t mark, int64_t code, const std::string& what);
  void device_done();
  bool tick_publication(const Tick& tick);
  void settle();
  // Why it cannot go on, whatever it is.
  std::optional<std::pair<int64_t, std::string>> trouble(const Tick& tick);
  std::string why_failed(const std::string& reason) const;
  std::string into() const;
  bool may_be_a_death();
  void fail(const Tick& tick, int64_t code, const std::string& why);
  void end(int64_t code, const std::string& why);
  bool has_started() const;
  bool never_began(Clock::time_point now) const { return begins_by_ && !deadline_ && now >= *begins_by_; }
  bool is_released() const { return start_[start_.size() - 1].seen() != 0; }
  bool streams_have_passed() const;
  bool has_left_its_stream() const;
  bool is_over() const { return is_publication() ? is_settled_ : has_ended_; }
  SentWord sent_word(SentWord::State state, int64_t code) const;
  void drained();
  void look_at_host_copies(const Tick& tick);
  void look_at_holder(const Tick& tick);
  void judge(const Tick& tick);  // has it ended, and how?
  // Of a layered transfer with host functions: a layer's flag waits until the watchdog saw none fail.
  bool confirms_layers() const { return host_copies_ != nullptr && slot_.has_value(); }

  // given at creation
  const std::shared_ptr<Link> link_;
  TransferPlan plan_;  // unpins its caches once drained
  const std::optional<SlotUse> slot_;
  WordPool& words_;
  Few<Word> start_;
  const Word done_;
  const Word passed_;
  const Word confirmed_;  // counts layers, or chunks of packed ones
  std::shared_ptr<Status> status_;
  const bool moves_host_memory_;
  const std::shared_ptr<HostCopies> host_copies_;  // nullptr: every byte moves by copies of the stream
  const std::shared_ptr<PullRound> pull_round_;    // with a ticket
  const uint32_t window_;                          // packed: of the receiver's staging

  friend class Engine;
  Arrivals<Transfer>::Hook at_engine_;

  // progress
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::shared_ptr<Lane> lane_;
  bool owns_lane_ = false;  // until drained; when it fails it may be cut off there
  bool is_claimed_ = false;
  bool is_submitted_ = false;  // to a lane
  bool notify_host_ = false;
  const std::shared_ptr<std::atomic<bool>> gate_refused_ = make_kept<std::atomic<bool>>(false);
  std::optional<std::string> cancelled_;
  std::vector<Word> to_open_;
  std::vector<std::string> spans_;  // made by submit, and left alone then
  Few<char> start_is_queued_;       // or not; per gate
  bool passed_is_queued_ = false;
  std::optional<Clock::time_point> deadline_;
  std::optional<Clock::time_point> begins_by_;      // of a blocking call
  std::chrono::milliseconds patience_{};            // that this was
  std::optional<std::chrono::milliseconds> limit_;  // until the last layer is released
  bool submission_has_ended_ = false;
  size_t passed_marks_ = 0;     // of the host copies
  Staging* staging_ = nullptr;  // borrowed, or the link's
  uint64_t mark_ = 0;
  bool awaits_staging_ = false;  // the receiver has not told of any on this link
  std::unique_ptr<IdBuffer> ids_;
  std::optional<std::pair<int64_t, std::string>> refused_;
  std::atomic<bool> peers_memory_is_refused_{false};
  std::optional<uint64_t> beats_at_refusal_;

  // result
  bool has_ended_ = false;
  int64_t code_ = kSuccess;
  std::string why_;
  std::vector<Value> late_values_;  // of the message, which changes when nothing of it is queued any more
  bool is_drained_ = false;
  bool is_abandoned_ = false;
  bool is_in_doubt_ = false;
  std::shared_ptr<const Destination> writes_;  // made when somebody asks what is in doubt
  // Of a publication.
  std::optional<TakenWord> taken_;
  bool is_settled_ = false;
  int waiting_ = 0;
};

HandleTable<Transfer>& tasks();

}  // namespace datadist
