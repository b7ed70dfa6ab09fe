#include "link/link.h"

#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>

#include "acl/check.h"
#include "acl/queue.h"
#include "error.h"
#include "link/engine.h"
#include "link/process.h"
#include "link/ticket.h"
#include "link/transfer.h"
#include "messages/messages.h"
#include "transport/mapped/mapped.h"

namespace datadist {
namespace {

constexpr size_t kWordsAtATime = 16;  // of some four transfers
constexpr auto kUntilItHasEnded = std::chrono::milliseconds(200);

int open_pidfd(const Peer& peer) {
  if (peer.in_this_process || peer.pid <= 0 || !peer.is_on_this_host) return -1;
  const int fd = static_cast<int>(syscall(SYS_pidfd_open, peer.pid, 0));
  const int64_t start_time = start_time_of(peer.pid);
  if (fd < 0 || start_time != peer.start_time) {
    if (fd >= 0) ::close(fd);
    const char* found = start_time == 0 ? "no such process" : "another process of that id";
    refuse(Message::peer_is_no_such_process,
           {{"peer", peer.name}, {"value", peer.pid}, {"start_time", peer.start_time}, {"found", found}});
  }
  return fd;
}

}  // namespace

Link::Link(std::shared_ptr<Engine> engine, std::shared_ptr<LocalCaches> caches, Peer peer,
           LinkOptions options)
    : engine_(std::move(engine)),
      caches_(std::move(caches)),
      peer_(std::move(peer)),
      options_(options),
      pidfd_(open_pidfd(peer_)),
      page_(engine_->pages().take()),
      transport_(make_transport()),
      slots_(options.max_in_flight),
      feeder_(std::make_shared<Feeder>(engine_->device(), acl::OnFailure::kStop, &engine_->words(),
                                       transport_.get(), &engine_->streams(),
                                       Feeder::Idle{options_.idle, [this] { free_idle_staging(); }})),
      packed_staging_(engine_->device()),
      sending_(kSlots),
      sent_(kSlots, 0),
      published_(kSlots, 0),
      expected_(kSlots, 0),
      outcomes_(kSlots),
      liveness_(options_.keep_alive, Clock::now()) {}

std::unique_ptr<Transport> Link::make_transport() {
  if (peer_.transport == "mapped" || peer_.transport == "fabric") {
    return mapped::make_transport(engine_->device(), {peer_.device, peer_.pid, peer_.start_time,
                                                      peer_.in_this_process, peer_.is_on_this_host});
  }
  engine::Settings settings;
  settings.engine = peer_.transport;
  settings.device = engine_->device();
  settings.is_peer_on_this_host = peer_.is_on_this_host;
  settings.is_peer_in_this_super_pod = peer_.is_in_this_super_pod;
  settings.listen_ip = options_.listen_ip;
  if (peer_.transport == "hixl") settings.options = options_.hixl_options;
  settings.peer = peer_.name;
  settings.chunk_bytes = options_.engine_chunk_bytes;
  settings.chunks = options_.engine_chunks;
  settings.take_word = [engine = engine_]() -> std::shared_ptr<char> {
    const Word word = engine->words().take();
    return {word.address, [engine, word](char*) { engine->words().give_back(word); }};
  };
  settings.named_by_peer = [this](engine::Named what, const char* address, size_t bytes) {
    return named_by_peer(what, address, bytes);
  };
  settings.reach_of_own = [caches = caches_](const char* address, size_t bytes) {
    return caches->reach_of(address, bytes);
  };
  settings.wake = [engine = engine_->weak_from_this()] {
    if (const auto found = engine.lock()) found->wake();
  };
  return engine::make_transport(std::move(settings));
}

// What a message of the peer names must be memory that this end lets it touch.
std::optional<Reach> Link::named_by_peer(engine::Named what, const char* address, size_t bytes) const {
  const auto is_in = [&](const char* begin, size_t size) {
    return address >= begin && address < begin + size && bytes <= static_cast<size_t>(begin + size - address);
  };
  if (what == engine::Named::kWord) {
    const bool is_word =
        is_in(page_.address, kPageBytes) && (address - page_.address) % sizeof(uint64_t) == 0;
    return is_word ? std::optional(Reach::kDevice) : std::nullopt;
  }
  if (what == engine::Named::kWritten && packed_staging_.is_own(address, bytes)) return Reach::kDevice;
  if (what == engine::Named::kWritten && proofs_.is_own(address, bytes)) return Reach::kDevice;
  if (peer_.is_fenced) return std::nullopt;
  return caches_->reach_for_peers(address, bytes, what == engine::Named::kWritten);
}

Link::~Link() {
  stop_streams();
  transport_.reset();  // what it does on a thread of its own looks at the rest
  if (page_.address != nullptr && peer_handle_ == 0)
    engine_->pages().give_back(page_);  // no peer ever knew it
  if (pidfd_ >= 0) ::close(pidfd_);
  for (const Word& word : words_) engine_->words().give_back(word);
}

Few<Word> Link::take_words(size_t count) {
  Few<Word> taken;
  std::lock_guard lock(words_mutex_);
  if (words_.size() < count) engine_->words().take(std::max(count, kWordsAtATime), &words_);
  for (; taken.size() < count; words_.pop_back()) taken.push_back(words_.back());
  return taken;
}

std::optional<Exported> Link::export_proofs() {
  if (!options_.verifies) return std::nullopt;
  const OwnMemory own{{proofs_.make_own(engine_->device()), Reach::kDevice}, kProofsBytes};
  return transport_->export_memory({own}).front();
}

void Link::connect(int64_t peer_link, const Exported& peer_page, const std::string& transport_address,
                   const std::optional<Exported>& peer_proofs) {
  require(state_ == kOpening && peer_page.offset >= 0 && peer_page.kind == MemoryKind::kDevice, kLinkFailed,
          "connect_link: the link to ", peer_.name,
          " is connected already or closed, or the peer's page has a bad offset (", peer_page.offset,
          ") or is not device memory");
  require(!peer_proofs || peer_proofs->kind == MemoryKind::kDevice, kLinkFailed, "connect_link: ", peer_.name,
          " takes proofs in what is not device memory");
  require(peer_link >= 1 && peer_link <= INT32_MAX, kLinkFailed, "connect_link: ", peer_.name,
          " calls its end link ", peer_link, ", expected 1 to ", INT32_MAX);
  transport_->connect(transport_address);
  Mapped mapping = transport_->map(peer_page, kPageBytes);
  if (peer_proofs && proofs_.has_own()) {
    proofs_.learn_peer(transport_->map(*peer_proofs, kProofsBytes));
    errands_ = scatters().take_lane(SIZE_MAX, Feeder::Budget::kExempt);
  }
  std::lock_guard lock(mutex_);
  require(state_ == kOpening, kLinkFailed, "connect_link: the link to ", peer_.name, " was closed meanwhile");
  peer_mapping_ = std::move(mapping);
  peer_page_ = peer_mapping_.address;
  peer_handle_ = peer_link;
  liveness_.restart(Clock::now());
  state_.store(kAlive, std::memory_order_release);
}

void Link::close(std::chrono::milliseconds patience) {
  const auto transfers_end = Clock::now() + patience;
  while (is_alive() && transfers_ > 0 && engine_->wait_for_tick(transfers_end)) {
  }
  die(kNotYetLink, "the link was closed here");
  stop_streams();
  // The peer learns from its page that nothing more will come; only then may our view of that page go, also
  // where there is nobody left to learn it: a word that is still queued would go to whatever is mapped there
  // next. A watchdog that gets no look at a lost device tells nobody, and one such wait is enough for all
  // links.
  const auto deadline = engine_->is_blind() ? Clock::now() : Clock::now() + options_.closing;
  while (true) {
    {
      std::lock_guard lock(mutex_);
      if (told_closed_ || peer_page_ == nullptr) break;
    }
    if (!engine_->wait_for_tick(deadline)) break;
  }
  // Host functions of its transfers may still copy.
  while (transfers_ > 0 && engine_->wait_for_tick(deadline)) {
  }
  remote_caches_.clear();
  acl::ContextScope restore;  // page-locked memory is freed in a context of its device
  free_all_staging();
  packed_staging_.unmap_peer();
  proofs_.take_peer();
  packed_staging_.free(false, *transport_);
  Mapped mapping;
  {
    std::lock_guard lock(mutex_);
    state_.store(kClosed, std::memory_order_release);
    if (told_closed_) mapping = std::exchange(peer_mapping_, {});  // else the watchdog ends it: is_gone
    peer_page_ = nullptr;
  }
}

void Link::die(int64_t code, const std::string& why) {
  std::lock_guard lock(mutex_);
  if (state_ != kOpening && state_ != kAlive) return;
  code_ = code;
  why_ = why;
  state_.store(kDead, std::memory_order_release);
}

std::pair<int64_t, std::string> Link::end() const {
  std::lock_guard lock(mutex_);
  return {code_, why_};
}

std::pair<int64_t, std::string> Link::reason() const {
  const auto [code, why] = end();
  return {code, render(Message::link_was_lost, {{"peer", peer_.name}, {"why", why}})};
}

std::string Link::why_sender_failed(SentWord sent) const {
  return render(Message::sender_gave_up, {{"peer", peer_.name}, {"value", long_code(sent.code)}});
}

void Link::require_alive(const char* asked) const {
  if (is_alive()) return;
  const auto [code, why] = end();
  if (code == kSuccess) refuse(Message::link_is_not_connected, {{"asked", asked}, {"peer", peer_.name}});
  throw Error(code, render(Message::link_is_down, {{"asked", asked}, {"peer", peer_.name}, {"why", why}}));
}

int64_t Link::ticket_of(SlotUse use) const {
  return TicketNumber{peer_handle_, use.slot, use.epoch & TicketNumber::kEpochMask}.pack();
}

void Link::announce(SlotUse use, SentWord word) {
  post(offsetof(Mail, sent) + use.slot * sizeof(uint64_t), word.pack());
  engine_->wake();
}

void Link::publish(SlotUse use, PublishedWord word) {
  post(offsetof(Mail, published) + use.slot * sizeof(uint64_t), word.pack());
}

void Link::offer(SlotUse use, OfferWord word) {
  post(offsetof(Mail, published) + use.slot * sizeof(uint64_t), word.pack());
}

bool Link::is_expected(SlotUse use) const {
  std::lock_guard lock(mutex_);
  return expected_[use.slot] == use.epoch;
}

void Link::slot_drained(SlotUse use, SentWord word) {
  post(offsetof(Mail, sent) + use.slot * sizeof(uint64_t), word.pack());
  if (slots_.drained(use)) packed_staging_.give_back_window(use.slot);
}

void Link::retire(SlotUse use, int64_t code, TakenWord::State state) {
  post(offsetof(Mail, taken) + use.slot * sizeof(uint64_t),
       TakenWord{use.epoch, short_code(code), state}.pack());
}

void Link::revoke(SlotUse use, int64_t code, TakenWord::State state) {
  post(offsetof(Mail, taken) + use.slot * sizeof(uint64_t),
       TakenWord{use.epoch, short_code(code), state}.pack());
}

void Link::expect(SlotUse use) {
  post(offsetof(Mail, taken) + use.slot * sizeof(uint64_t),
       TakenWord{use.epoch, 0, TakenWord::kExpected}.pack());
  engine_->wake();
}

void Link::sends(SlotUse use, const std::shared_ptr<Transfer>& transfer) {
  std::lock_guard lock(mutex_);
  sending_[use.slot] = transfer;
}

void Link::post(size_t offset, uint64_t value) {
  std::lock_guard lock(mutex_);
  outbox_.push_back({offset, value});
}

SentWord Link::sent(uint32_t slot) const {
  std::lock_guard lock(mutex_);
  return SentWord::unpack(sent_[slot]);
}

bool Link::is_told_of(uint32_t slot) const {
  std::lock_guard lock(mutex_);
  const SentWord sent = SentWord::unpack(sent_[slot]);
  return (!sent.is_publication && !sent.is_offer) ||
         PublishedWord::unpack(published_[slot]).epoch_low == (sent.epoch & PublishedWord::kEpochMask);
}

bool Link::may_be_touched() const {
  std::lock_guard lock(mutex_);
  return peer_may_write();
}

std::pair<std::optional<Link::Outcome>, std::shared_ptr<Ticket>> Link::look_up(uint32_t slot,
                                                                               uint32_t epoch_low) const {
  const auto is_it = [&](uint32_t epoch) {
    return epoch != 0 && (epoch & TicketNumber::kEpochMask) == epoch_low;
  };
  std::lock_guard lock(mutex_);
  if (is_it(outcomes_[slot].epoch)) return {outcomes_[slot], nullptr};
  for (const auto& ticket : tickets_) {
    if (ticket->use().slot == slot && is_it(ticket->use().epoch)) return {std::nullopt, ticket};
  }
  return {std::nullopt, nullptr};
}

std::shared_ptr<Ticket> Link::ticket(uint32_t slot, uint32_t epoch_low, const char* asked) {
  std::lock_guard lock(mutex_);
  for (const auto& ticket : tickets_) {
    if (ticket->use().slot == slot && (ticket->use().epoch & TicketNumber::kEpochMask) == epoch_low)
      return ticket;
  }
  SentWord sent = SentWord::unpack(sent_[slot]);
  if ((sent.epoch & TicketNumber::kEpochMask) != epoch_low)
    refuse(Message::ticket_is_used_up, {{"asked", asked},
                                        {"value", TicketNumber{handle_, slot, epoch_low}.pack()},
                                        {"peer", peer_.name},
                                        {"why", "its slot has been issued again since"}});
  const Outcome& outcome = outcomes_[slot];
  const bool is_used_up = outcome.epoch == sent.epoch;
  if (is_used_up)
    refuse(Message::ticket_is_used_up,
           {{"asked", asked},
            {"value", TicketNumber{handle_, slot, epoch_low}.pack()},
            {"peer", peer_.name},
            {"why",
             outcome.code == kSuccess ? std::string("it arrived before, or was discarded") : outcome.why}});
  if (!(sent.first_layer <= sent.last_layer && sent.last_layer < kLayers))
    refuse(Message::ticket_makes_no_sense,
           {{"asked", asked},
            {"peer", peer_.name},
            {"slot", slot},
            {"value", join(int{sent.first_layer}, " to ", int{sent.last_layer})}});
  // Nobody would tick a ticket of a link that is over, so its waits would never be released.
  if (!is_alive())
    throw Error(code_,
                render(Message::link_is_down, {{"asked", asked}, {"peer", peer_.name}, {"why", why_}}));
  sent.is_proven = sent.is_proven && errands_ != nullptr;  // what the peer says does not make us verify
  tickets_.push_back(std::make_shared<Ticket>(shared_from_this(), SlotUse{slot, sent.epoch}, sent,
                                              PublishedWord::unpack(published_[slot]),
                                              OfferWord::unpack(published_[slot])));
  return tickets_.back();
}

void Link::peer_process_ended(const std::string& what) {
  {
    std::lock_guard lock(mutex_);
    peer_is_gone_ = true;
  }
  die(kNotYetLink, what);
}

void Link::clock_gap(Clock::duration gap) {
  std::vector<std::shared_ptr<Ticket>> tickets;
  {
    std::lock_guard lock(mutex_);
    liveness_.clock_gap(gap);
    tickets = tickets_;
  }
  // Without our lock: a ticket takes its own first.
  for (const auto& ticket : tickets) ticket->clock_gap(gap);
}

bool Link::watches_process() const {
  std::lock_guard lock(mutex_);
  return pidfd_ >= 0 && !peer_is_gone_;
}

// Asked when the transport has failed: a process that ends closes its sockets before it counts as ended,
// which is the better reason.
bool Link::may_be_ending(const Tick& tick) {
  if (!watches_process()) return false;
  if (!failed_at_) failed_at_ = tick.now;
  return tick.now - *failed_at_ < kUntilItHasEnded;
}

bool Link::is_busy() const {
  std::lock_guard lock(mutex_);
  return !tickets_.empty() || !outbox_.empty() || transfers_ > 0;
}

void Link::tick(const Tick& tick) {
  feeder_->tick();
  Feeder* const scatters = scatters_.load();
  if (scatters != nullptr) scatters->tick();
  if (page_.mail->state == kEndIsClosed) {
    std::lock_guard lock(mutex_);
    peer_has_closed_ = true;
  }
  if (is_alive()) {
    if (const aclError failure = feeder_->failure(); failure != 0) {
      die(acl::status_code(failure),
          join("a task on its stream failed with ", failure, ", which stopped the link's context"));
    }
    if (const aclError failure = scatters != nullptr ? scatters->failure() : 0; failure != 0) {
      die(acl::status_code(failure),
          join("a kernel or a copy that scatters what landed in its staging failed "
               "with ",
               failure, ", which stopped that context"));
    }
    if (const auto failure = transport_->failure(); failure && !may_be_ending(tick))
      die(kNotYetLink, *failure);
    read_mail(tick);
    cancel_what_was_told();
    if (errands_ != nullptr) meet_proven_pushes();
    watch_heartbeat(tick);
  }
  std::vector<std::shared_ptr<Ticket>> tickets;
  {
    std::lock_guard lock(mutex_);
    tickets = tickets_;
  }
  const bool alive = is_alive();
  for (const auto& ticket : tickets) {
    if (!ticket->tick(tick, sent(ticket->use().slot), alive)) continue;
    // Before our lock: a ticket takes its own first.
    const auto [_, code, why] = ticket->state();
    const bool awaits_sender = ticket->awaits_sender();
    std::lock_guard lock(mutex_);
    outcomes_[ticket->use().slot] = {ticket->use().epoch, code, why, awaits_sender};
    std::erase(tickets_, ticket);
  }
  if (is_over()) feeder_->request_stop();
  if (is_over() && scatters != nullptr) scatters->request_stop();
  send_mail(tick);
  if (is_over() && transport_->can_cut_off()) cut_off_silent_peer(tick);
}

// Nobody tells of the end of a process on another host, and the way to it may be cut. What it can still write
// here needs the engine of this end, which can take that away.
void Link::cut_off_silent_peer(const Tick& tick) {
  liveness_.look(page_.mail->heartbeat, tick.now);
  const bool is_silent = liveness_.is_lost(tick.now) || transport_->failure().has_value();
  if (is_silent && streams_have_stopped()) transport_->sever();
}

void Link::watch_heartbeat(const Tick& tick) {
  if (!liveness_.is_lost(tick.now)) return;
  const std::string so_long = join(options_.keep_alive.count(), " ms");
  if (liveness_.beats() == 0 && !peer_.is_on_this_host && peer_.transport != "fabric") {
    die(kNotYetLink, join("nothing has come over ", transport_->name(), " in ", so_long,
                          " since the link was made; the peer has ended or is frozen, or a firewall stops ",
                          transport_->name(), " between the hosts"));
  } else {
    die(kNotYetLink, join("no sign of life for ", so_long, "; the peer is frozen or cut off"));
  }
}

// The page, and whatever else the peer has mapped, is its to write until it is gone or said that its streams
// are drained.
bool Link::peer_may_write() const {
  return peer_handle_ != 0 && !peer_is_gone_ && !peer_has_closed_ && !transport_->is_cut_off();
}

bool Link::is_gone(const Tick& tick) {
  if (state_.load(std::memory_order_acquire) != kClosed) return false;
  acl::ContextScope restore;  // unmapping and freeing through torch's allocator change the thread's
  Mapped left;                // unmapped without the lock
  std::lock_guard lock(mutex_);
  if (told_closed_) left = std::exchange(peer_mapping_, {});
  if (!tickets_.empty() || transfers_ > 0) return false;
  if (peer_may_write() || peer_mapping_.address != nullptr) return false;
  if (!transport_->is_severed()) {
    transport_->sever();
    return false;
  }
  if (!page_is_zeroed_) {
    DATADIST_ACL(acl::queue_fill(page_.address, 0, kPageBytes, tick.local));
    page_is_zeroed_ = true;
    return false;  // done at the next tick, which syncs the stream first
  }
  packed_staging_.free(true, *transport_);
  proofs_.free_own();
  engine_->pages().give_back(std::exchange(page_, {}));
  if (pidfd_ >= 0) ::close(std::exchange(pidfd_, -1));
  return true;
}

CompactTable<Link>& links() {
  static auto* table = new CompactTable<Link>;
  return *table;
}

}  // namespace datadist
