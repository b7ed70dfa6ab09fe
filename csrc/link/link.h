// One end of a link: the peer's page and caches, the streams that reach the peer, slots, liveness.
//
//   kOpening --connect--> kAlive --die (peer gone, frozen, closed; a task failed)--> kDead --close--> kClosed
//
// A dead link stays dead: a relink is a new Link with new memory under a new handle.
#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "cache/cache.h"
#include "link/feeder.h"
#include "link/few.h"
#include "link/handles.h"
#include "link/known_ends.h"
#include "link/liveness.h"
#include "link/page.h"
#include "link/proof.h"
#include "link/route.h"
#include "link/slots.h"
#include "link/staging.h"
#include "link/tick.h"
#include "transport/engine/engine_transport.h"

namespace datadist {

class Engine;
class Ticket;
class Transfer;

constexpr size_t kStagingBytes = 2 << 20;         // of whole transfers
constexpr size_t kLayerStagingBytes = 512 << 10;  // of each layered one: there may be many

struct Peer {
  int64_t cluster_id = 0;
  std::string name;  // for messages: "cluster 2 (127.0.0.1:26000)"
  int device = 0;
  int pid = 0;
  int64_t start_time = 0;  // of the process, so that a reused pid is not taken for it
  bool in_this_process = false;
  bool is_fenced = false;  // it writes to staging only: packed transfers, for tickets that are expected
  bool is_on_this_host = true;
  bool is_in_this_super_pod = true;  // or may be
  std::string transport = "mapped";  // or the name of an engine
};

struct LinkOptions {
  std::chrono::milliseconds keep_alive{3000};
  std::chrono::milliseconds transfer_timeout{1000};
  size_t max_in_flight = 256;
  size_t streams = 64;
  size_t stream_budget = 1024;  // of all links of the device
  size_t packed_staging_bytes = 64 << 20;
  std::chrono::milliseconds idle{5000};     // without work, until streams and staging go back
  std::chrono::milliseconds closing{1000};  // for running transfers, and for the peer to hear of the end
  std::shared_ptr<StagingBudget> staging = std::make_shared<StagingBudget>(size_t{1} << 30);
  bool verifies = false;  // transfers that begin here read back what they copied, and compare
  // Of transports that stage: pinned buffers of that size, that many for each way and one set for pulls.
  size_t engine_chunk_bytes = 1 << 20;
  size_t engine_chunks = 8;
  std::string listen_ip;
  std::map<std::string, std::string> hixl_options;  // by the names that HIXL has for them
};

class Link : public std::enable_shared_from_this<Link> {
 public:
  Link(std::shared_ptr<Engine> engine, std::shared_ptr<LocalCaches> caches, Peer peer, LinkOptions options);
  ~Link();

  // Set-up and end; Python's control thread.
  void set_handle(int64_t handle) { handle_ = handle; }
  const Page& page() const { return page_; }
  // Where this end verifies: what the peer's proofs land in, for the peer to know. Before `connect`.
  std::optional<Exported> export_proofs();
  // `peer_proofs`: of a peer that verifies; used where this end does, too.
  void connect(int64_t peer_link, const Exported& peer_page, const std::string& transport_address = {},
               const std::optional<Exported>& peer_proofs = std::nullopt);
  // Ends it if it is alive, and waits until its streams are gone. `patience`: for what runs on it.
  void close(std::chrono::milliseconds patience);

  // Calls of any thread.
  int64_t handle() const { return handle_; }
  const Peer& peer() const { return peer_; }
  const LinkOptions& options() const { return options_; }
  Engine& engine() const { return *engine_; }
  uint64_t beats() const { return liveness_.beats(); }  // watchdog: of the peer
  Transport& transport() const { return *transport_; }
  LocalCaches& caches() const { return *caches_; }  // of this end
  RemoteCaches& remote_caches() { return remote_caches_; }
  KnownEnds& known_ends() { return known_ends_; }
  void require_alive(const char* asked) const;
  bool is_alive() const { return state_.load(std::memory_order_acquire) == kAlive; }
  std::pair<int64_t, std::string> end() const;  // code and cause, bare; (0, "") while it is alive
  // The peer, or a copy that it had queued, may still touch our memory: it neither said that its streams are
  // drained nor is its process known to be gone.
  bool may_be_touched() const;
  std::pair<int64_t, std::string> reason() const;  // the same as the message of what it has ended
  std::string why_sender_failed(SentWord sent) const;

  // For transfers.
  SlotUse take_slot(const char* asked) { return slots_.take(asked, peer_.name); }
  int64_t ticket_of(SlotUse use) const;
  char* peer_flag(uint32_t slot, int64_t layer) const { return peer_page_ + flag_offset(slot, layer); }
  char* peer_arrived(uint32_t slot) const { return peer_page_ + arrived_offset(slot); }
  char* own_credit(uint32_t slot) const { return page_.address + credit_offset(slot); }
  void offer(SlotUse use, OfferWord word);  // ahead of `announce`
  bool is_expected(SlotUse use) const;      // the receiver has said where an offer goes
  LinkStaging& staging() { return packed_staging_; }
  const Proofs& proofs() const { return proofs_; }
  void announce(SlotUse use, SentWord word);
  void publish(SlotUse use, PublishedWord word);  // ahead of `announce`
  void sends(SlotUse use, const std::shared_ptr<Transfer>& transfer);
  void slot_drained(SlotUse use, SentWord word);
  // nullptr when there is none; it may wait for the allocator.
  std::shared_ptr<Lane> take_own_lane();
  // Feeding thread: the main lane where no other is free; nullptr when that is gone, too.
  std::shared_ptr<Lane> take_any_lane();
  // The main lane: whole transfers that use the link's staging buffers go there, one after the other.
  std::shared_ptr<Lane> take_staging_lane();
  void give_back_lane(std::shared_ptr<Lane> lane);
  bool is_shared(const std::shared_ptr<Lane>& lane) const;  // by whole transfers that found no other
  Staging* route_staging() { return &staging_; }
  // For one stream of its own; given back when nothing reads or writes it any more.
  Staging* borrow_staging();
  void give_back_staging(Staging* staging);
  const std::shared_ptr<Feeder>& feeder() const { return feeder_; }
  // Of the engine, some at a time: ops on several links do not meet at its lock. Given back to the engine.
  Few<Word> take_words(size_t count);
  void transfer_began() { ++transfers_; }
  void transfer_retired() { --transfers_; }
  void count_success(uint64_t bytes) {
    bytes_moved_.fetch_add(bytes, std::memory_order_relaxed);
    ended_.fetch_add(1, std::memory_order_release);
  }
  void count_failure() {
    failed_.fetch_add(1, std::memory_order_relaxed);
    ended_.fetch_add(1, std::memory_order_release);
  }
  // For those who watch over an instance: of the transfers that this end began and that have ended.
  struct Counts {
    uint64_t transfers = 0;
    uint64_t failures = 0;  // of those
    uint64_t bytes = 0;     // of the others
  };
  Counts counts() const {
    const uint64_t transfers = ended_.load(std::memory_order_acquire);
    return {transfers, failed_.load(std::memory_order_relaxed), bytes_moved_.load(std::memory_order_relaxed)};
  }

  // For tickets.
  struct Outcome {
    uint32_t epoch = 0;  // 0: none yet
    int64_t code = kSuccess;
    std::string why;
    bool awaits_sender = false;  // who may still write, and has not said otherwise before the link died
  };
  SentWord sent(uint32_t slot) const;    // as the last mail said
  bool is_told_of(uint32_t slot) const;  // all that belongs to that word has come, too
  // How it ended, or the ticket that somebody holds, or neither: one look, since a ticket becomes an outcome
  // at any time.
  std::pair<std::optional<Outcome>, std::shared_ptr<Ticket>> look_up(uint32_t slot, uint32_t epoch_low) const;
  std::shared_ptr<Ticket> ticket(uint32_t slot, uint32_t epoch_low, const char* asked);
  // For a ticket that the sender has not told of yet: it is cancelled as soon as that comes. Forgotten when
  // the sender has had time to tell and did not: it never issued that number.
  void cancel_ahead(uint32_t slot, uint32_t epoch_low, const std::string& why);
  bool is_cancelled_ahead(uint32_t slot, uint32_t epoch_low) const;
  char* own_flag(uint32_t slot, int64_t layer) const { return page_.address + flag_offset(slot, layer); }
  void retire(SlotUse use, int64_t code, TakenWord::State state);
  // Asks the sender to send nothing more of it: kRevoked, or kDiffers.
  void revoke(SlotUse use, int64_t code, TakenWord::State state = TakenWord::kRevoked);
  void expect(SlotUse use);  // tells the sender that an offer may go packed
  char* own_arrived(uint32_t slot) const { return page_.address + arrived_offset(slot); }
  char* peer_credit(uint32_t slot) const { return peer_page_ + credit_offset(slot); }
  // Streams of what lands in staging, in a context of their own: one that copies to a dead peer stops none.
  std::shared_ptr<Lane> take_scatter_lane();
  std::shared_ptr<Lane> try_take_scatter_lane();  // nullptr: there is none
  void submit_scatter(const std::shared_ptr<Lane>& lane, std::unique_ptr<Program> program);
  void drop_scatter_lane(const std::shared_ptr<Lane>& lane);
  void give_back_scatter_lane(std::shared_ptr<Lane> lane);
  void scatter_failed(const std::string& what);
  // Of proven tickets: what the watchdog may not wait for, on the thread that feeds those streams.
  void submit_errand(std::unique_ptr<Program> program) { submit_scatter(errands_, std::move(program)); }

  // Watchdog.
  void tick(const Tick& tick);
  void peer_process_ended(const std::string& what);
  void clock_gap(Clock::duration gap);
  int pidfd() const { return pidfd_; }
  bool watches_process() const;
  bool is_busy() const;
  void stop_streams();             // what is queued on them is cut off
  bool is_gone(const Tick& tick);  // closed, and nothing of it is in use any more: the engine may forget it

  void die(int64_t code, const std::string& why);

 private:
  enum State { kOpening, kAlive, kDead, kClosed };
  struct Outgoing {
    size_t offset;  // in the peer's Mail
    uint64_t value;
  };

  struct CancelledAhead {
    uint32_t slot;
    uint32_t epoch_low;
    std::string why;
    std::optional<uint64_t> beats;  // of the peer, when the watchdog first looked
  };

  bool peer_may_write() const;  // with the lock
  bool is_over() const { return state_.load(std::memory_order_acquire) >= kDead; }
  void read_mail(const Tick& tick);
  void retire_what_failed_unasked();
  void cancel_what_was_told();
  void meet_proven_pushes();
  void watch_heartbeat(const Tick& tick);
  bool may_be_ending(const Tick& tick);
  void send_mail(const Tick& tick);
  void cut_off_silent_peer(const Tick& tick);
  std::unique_ptr<Transport> make_transport();
  std::optional<Reach> named_by_peer(engine::Named what, const char* address, size_t bytes) const;
  void post(size_t offset, uint64_t value);
  void free_all_staging();
  bool streams_have_stopped() const;
  Feeder& scatters();
  void free_idle_staging();  // feeding thread, which has nothing queued

  const std::shared_ptr<Engine> engine_;
  const std::shared_ptr<LocalCaches> caches_;
  const Peer peer_;
  const LinkOptions options_;
  int64_t handle_ = 0;
  int64_t peer_handle_ = 0;
  int pidfd_ = -1;
  Page page_;
  std::unique_ptr<Transport> transport_;
  Mapped peer_mapping_;
  char* peer_page_ = nullptr;
  RemoteCaches remote_caches_;
  KnownEnds known_ends_;
  SenderSlots slots_;
  std::shared_ptr<Feeder> feeder_;  // also of handlers that are to wake it
  LinkStaging packed_staging_;
  std::mutex scatter_mutex_;
  std::unique_ptr<Feeder> scatter_feeder_;  // made with the first ticket that is expected, and then kept
  std::atomic<Feeder*> scatters_{nullptr};
  Proofs proofs_;
  std::shared_ptr<Lane> errands_;    // with proofs at both ends
  std::shared_ptr<Lane> main_lane_;  // whole transfers share it when no other stream is free
  Staging staging_{kStagingBytes};
  std::vector<std::unique_ptr<Staging>> lent_staging_;  // all that were made, as many as tasks were under way
  std::vector<Staging*> free_staging_;
  std::mutex words_mutex_;
  std::vector<Word> words_;  // taken, and of nobody yet
  std::atomic<int64_t> transfers_{0};
  std::atomic<uint64_t> ended_{0};
  std::atomic<uint64_t> failed_{0};
  std::atomic<uint64_t> bytes_moved_{0};

  std::atomic<State> state_{kOpening};
  mutable std::mutex mutex_;
  int64_t code_ = kSuccess;
  std::string why_;
  std::vector<Outgoing> outbox_;
  std::vector<std::weak_ptr<Transfer>> sending_;  // per slot
  std::vector<uint64_t> sent_;                    // copy of the page's words, for callers
  std::vector<uint64_t> published_;               // likewise
  std::vector<uint32_t> expected_;                // per slot, the epoch of the last offer that was expected
  std::vector<std::shared_ptr<Ticket>> tickets_;
  std::vector<CancelledAhead> cancelled_ahead_;  // one per slot at most
  std::vector<Outcome> outcomes_;                // per slot, of the last ticket that is used up

  // The watchdog's own.
  Liveness liveness_;
  uint64_t seen_sequence_ = 0;
  Clock::time_point beat_at_;
  std::optional<Clock::time_point> failed_at_;  // watchdog: the transport
  uint64_t heartbeat_ = 0;
  uint64_t sequence_ = 0;
  bool owes_sequence_ = false;
  bool told_closed_ = false;
  bool closed_is_written_ = false;
  bool page_is_zeroed_ = false;
  bool must_reread_ = false;
  bool peer_is_gone_ = false;     // its process
  bool peer_has_closed_ = false;  // its last word: its page stays until it has read ours, too
};

CompactTable<Link>& links();

}  // namespace datadist
