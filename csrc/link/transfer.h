// One transfer as its initiator sees it: from checked arguments to the last word that somebody may still
// read.
//
// A whole transfer has one start gate, written by the caller's stream. A layered one (a task) has one per
// layer, and a slot at the receiver whose flags tell of each layer. Both end with a done gate, written by the
// link's stream or, when something failed, by the watchdog after the error.
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
#include "link/lane.h"
#include "link/link.h"
#include "link/route.h"
#include "link/status.h"
#include "plan/plan.h"
#include "plan/span.h"

namespace datadist {

enum class Direction { kPush, kPull };

// Checked, planned, and not yet known to any stream.
struct TransferPlan {
  Direction direction = Direction::kPush;
  std::shared_ptr<LocalCache> local;
  std::shared_ptr<RemoteCache> remote;
  LayerRange local_layers;
  LayerRange remote_layers;
  Shape shape;
  std::vector<Run> runs;  // in the direction in which the bytes flow
  RouteNeeds needs;
  std::chrono::milliseconds timeout{0};
  bool by_layers = false;  // released one by one; nobody at the receiver need wait for them
};

// A word that a caller's stream writes 1 to, and where its handler says that the runtime refused.
struct Gate {
  char* word = nullptr;
  std::shared_ptr<std::atomic<bool>> refused;
};

class Transfer : public std::enable_shared_from_this<Transfer> {
 public:
  // `slot`: a layered push that somebody waits for. Takes the words it needs.
  Transfer(std::shared_ptr<Link> link, TransferPlan plan, std::optional<SlotUse> slot);
  ~Transfer();

  // --- the initiator
  // Hands the copies to the link's feeding thread. A layered transfer needs a stream of its own:
  // LLM_LINK_BUSY when there is none. `notify_host`: somebody will `wait`.
  void submit(bool notify_host, const char* asked);
  // Ends it early; what it queued on a stream of its own is cut off.
  void cancel(const std::string& why);
  // Of a layered transfer: it ends at the latest so long after its last layer was released.
  void limit(std::chrono::milliseconds timeout);
  // Blocks until it ended; (code, detail).
  std::pair<int64_t, std::string> wait();
  std::tuple<bool, int64_t, std::string> state() const;

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
  bool is_layered() const { return slot_.has_value() || plan_.by_layers; }
  bool is_bound() const;
  bool is_retired() const;  // watchdog: ended, drained, and no stream reads its words any more
  int64_t layers() const { return plan_.local_layers.layers; }
  int64_t first_layer() const { return plan_.local_layers.first_layer; }
  bool carries(int64_t local_layer) const {
    return local_layer >= first_layer() && local_layer < first_layer() + layers();
  }
  int64_t ticket() const;
  bool moves_host_memory() const { return moves_host_memory_; }  // on this side
  Link& link() const { return *link_; }

  // --- the watchdog; true when nothing of it is in use any more
  void revoked(uint32_t epoch);  // the receiver waits no longer: what has not left stays here
  bool tick(const Tick& tick);
  void clock_gap(Clock::duration gap);
  void abandon(const std::string& why);  // there is no watchdog any more

 private:
  friend class TransferProgram;
  void submission_ended(uint64_t mark, int64_t code, const std::string& what);
  void device_done();
  void fail(const Tick& tick, int64_t code, const std::string& why);
  void end(int64_t code, const std::string& why);
  bool has_started() const;
  bool is_released() const { return start_.back().seen() != 0; }
  bool streams_have_passed() const;
  SentWord sent_word(SentWord::State state, int64_t code) const;
  void drained();
  void look_at_host_copies(const Tick& tick);
  void judge(const Tick& tick);  // has it ended, and how?
  // Of a layered transfer with host functions: a layer's flag waits until the watchdog saw none fail.
  bool confirms_layers() const { return host_copies_ != nullptr && slot_.has_value(); }
  size_t host_marks() const { return (confirms_layers() ? static_cast<size_t>(layers()) : 0) + 1; }

  // given at creation
  const std::shared_ptr<Link> link_;
  TransferPlan plan_;  // unpins its caches once drained
  const std::optional<SlotUse> slot_;
  WordPool& words_;
  std::vector<Word> start_;
  const Word done_;
  const Word passed_;
  const Word confirmed_;  // counts layers
  std::shared_ptr<Status> status_;
  const bool moves_host_memory_;
  const std::shared_ptr<HostCopies> host_copies_;  // nullptr: every byte moves by copies of the stream

  // progress
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::shared_ptr<Lane> lane_;
  bool is_claimed_ = false;
  bool is_submitted_ = false;
  const std::shared_ptr<std::atomic<bool>> gate_refused_ = std::make_shared<std::atomic<bool>>(false);
  std::optional<std::string> cancelled_;
  std::vector<Word> to_open_;
  std::vector<bool> start_is_queued_;
  bool passed_is_queued_ = false;
  std::optional<Clock::time_point> deadline_;
  std::optional<std::chrono::milliseconds> limit_;  // until the last layer is released
  bool submission_has_ended_ = false;
  size_t passed_marks_ = 0;     // of the host copies
  Staging* staging_ = nullptr;  // borrowed, or the link's
  uint64_t mark_ = 0;
  std::optional<std::pair<int64_t, std::string>> refused_;

  // result
  bool has_ended_ = false;
  int64_t code_ = kSuccess;
  std::string why_;
  bool is_drained_ = false;
};

HandleTable<Transfer>& tasks();

}  // namespace datadist
