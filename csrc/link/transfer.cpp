#include "link/transfer.h"

#include "error.h"
#include "link/destination.h"
#include "link/engine.h"
#include "link/packed_push.h"
#include "link/spans.h"
#include "link/ticket.h"
#include "link/transfer_bytes.h"
#include "link/transfer_program.h"
#include "link/verification.h"
#include "messages/messages.h"

namespace datadist {
Transfer::Transfer(std::shared_ptr<Link> link, TransferPlan plan, std::optional<SlotUse> slot)
    : link_(std::move(link)),
      plan_(std::move(plan)),
      slot_(slot),
      words_(link_->engine().words()),
      start_(link_->take_words((is_layered() ? plan_.local_layers.layers : 1) + 3)),
      done_(start_.take_last()),
      passed_(start_.take_last()),
      confirmed_(plan_.needs.host_copies && slot_ ? words_.take() : Word()),
      status_(make_kept<Status>(&words_, start_.take_last())),
      moves_host_memory_(!is_on_device(plan_.local->tensors.front().reach)),
      host_copies_(plan_.needs.host_copies ? HostCopies::make([engine = link_->engine().weak_from_this()] {
        if (const auto found = engine.lock()) found->wake();
      })
                                           : nullptr),
      pull_round_(plan_.ticket != nullptr ? std::make_shared<PullRound>() : nullptr),
      window_(plan_.way != TransferPlan::Way::kDirect ? link_->staging().take_window(*slot_) : 0) {
  for (size_t i = 0; i < start_.size(); ++i) start_is_queued_.push_back(false);
  link_->transfer_began();
  if (plan_.way != TransferPlan::Way::kDirect) {
    link_->offer(*slot_,
                 {static_cast<uint32_t>(plan_.remote->id), static_cast<uint32_t>(plan_.packed_src.size()),
                  window_, static_cast<uint32_t>(plan_.remote_layers.tensors_per_layer), slot_->epoch});
  }
  if (is_publication()) {
    const LayerRange& all = plan_.local_layers;
    link_->publish(*slot_, {static_cast<uint32_t>(plan_.local->id), static_cast<uint32_t>(all.first_layer),
                            static_cast<uint32_t>(all.tensors_per_layer), slot_->epoch});
  }
  if (slot_) link_->announce(*slot_, sent_word(SentWord::kOpen, kSuccess));
}

Transfer::~Transfer() {
  for (size_t i = 0; i < start_.size(); ++i) words_.give_back(start_[i]);
  words_.give_back(done_);
  words_.give_back(passed_);
  words_.give_back(confirmed_);
  if (host_copies_) host_copies_->close();
}

// An offer is decided when it is bound: what the receiver says later comes too late.
void Transfer::decide_way() {
  using Way = TransferPlan::Way;
  std::lock_guard lock(mutex_);
  if (plan_.way == Way::kOffered) {
    plan_.way = link_->is_expected(*slot_) && link_->staging().knows_peer() ? Way::kPacked : Way::kDirect;
    link_->announce(*slot_, sent_word(SentWord::kOpen, kSuccess));
  }
  awaits_staging_ = plan_.way == Way::kPacked && !link_->staging().knows_peer();
}

// Watchdog: true once, when it waited for the receiver's staging and that is there.
bool Transfer::takes_off() {
  std::lock_guard lock(mutex_);
  if (!awaits_staging_ || has_ended_ || !is_submitted_ || !link_->staging().knows_peer()) return false;
  awaits_staging_ = false;
  return true;
}

bool Transfer::is_never_expected() const {
  return plan_.way == TransferPlan::Way::kPacked && !link_->is_expected(*slot_);
}

std::pair<bool, bool> Transfer::way() const {
  std::lock_guard lock(mutex_);
  return {slot_ && link_->is_expected(*slot_), plan_.way == TransferPlan::Way::kPacked};
}

void Transfer::submit(bool notify_host, const char* asked) {
  if (plan_.way != TransferPlan::Way::kDirect) decide_way();
  if (!is_publication() && spans::are_wanted()) spans_ = spans::of(plan_, *link_, is_layered());
  notify_host_ = notify_host;
  if (!waits_for_others()) {
    link_->feeder()->leave(shared_from_this());  // until its one gate is queued
    return;
  }
  if (!take_own_lane(asked)) return;  // the watchdog goes on with it
  if (plan_.way == TransferPlan::Way::kPacked)
    link_->feeder()->submit(lane_, std::make_unique<PackedProgram>(shared_from_this()));
  else if (is_layered())
    link_->feeder()->submit(lane_, make_transfer_program(shared_from_this(), notify_host));
  else
    link_->feeder()->leave(lane_, make_transfer_program(shared_from_this(), notify_host));
}

// False: it has to wait for the receiver's staging.
bool Transfer::take_own_lane(const char* asked) {
  auto lane = link_->take_own_lane();
  if (lane == nullptr) {
    std::lock_guard lock(mutex_);
    is_claimed_ = false;
    link_->require_alive(asked);  // a link that dies just now gives no more streams
  }
  if (lane == nullptr) {
    refuse(Message::all_streams_in_use, {{"asked", asked},
                                         {"value", link_->options().streams},
                                         {"peer", link_->peer().name},
                                         {"limit", link_->engine().streams().limit()},
                                         {"device", link_->engine().device()}});
  }
  std::lock_guard lock(mutex_);
  lane_ = std::move(lane);
  is_submitted_ = true;
  owns_lane_ = true;
  if (plan_.needs.buffers()) staging_ = link_->borrow_staging();
  if (is_layered() || is_publication()) deadline_ = Clock::now() + plan_.timeout;
  // The receiver has a stream wait for it, which it does not do for all that is ever prepared.
  if (plan_.is_proven && plan_.way == TransferPlan::Way::kDirect)
    link_->announce(*slot_, sent_word(SentWord::kOpen, kSuccess));
  return !awaits_staging_;
}

// Whatever goes wrong here ends the transfer, not the link's thread.
void Transfer::board() {
  try {
    board_a_lane();
  } catch (const Error& error) {
    submission_ended(0, error.code(), error.what());
  } catch (const std::exception& error) {
    submission_ended(0, kFailed, error.what());
  }
}

void Transfer::board_a_lane() {
  const auto has_ended = [this] {
    std::lock_guard lock(mutex_);
    return has_ended_;
  };
  if (has_ended()) return;  // with nothing queued, now or ever
  // Whole transfers that need a stop on their way go one after the other, on one stream.
  const bool shares_staging = plan_.needs.any();
  auto lane = shares_staging ? link_->take_staging_lane() : link_->take_any_lane();
  require(lane != nullptr, link_->is_alive() ? kLinkBusy : kNotYetLink, "there was no stream to carry it");
  {
    std::lock_guard lock(mutex_);
    if (!has_ended_) {
      lane_ = lane;
      is_submitted_ = true;
      if (shares_staging) staging_ = link_->route_staging();
    }
  }
  if (is_submitted_)
    link_->feeder()->leave(lane, make_transfer_program(shared_from_this(), notify_host_));
  else
    link_->give_back_lane(std::move(lane));
}

void Transfer::cancel(const std::string& why) {
  {
    std::lock_guard lock(mutex_);
    if (has_ended_ || cancelled_) return;  // the first reason is the one that counts
    cancelled_ = why;
  }
  link_->engine().wake();
}

void Transfer::discard(const char* asked) {
  {
    std::lock_guard lock(mutex_);
    if (cancelled_ == "discarded") return;
    const std::string what =
        join(asked, is_publication() ? ": what was published for " : ": the task to ", link_->peer().name);
    if (!(!has_ended_ && !taken_))
      refuse(Message::discarded_too_late, {{"value", what},
                                           {"how", code_ == kSuccess ? std::string("has ended already")
                                                                     : join("has ended already: ", why_)}});
    if (!(is_publication() || !is_claimed_))
      refuse(Message::discarded_too_late,
             {{"value", what},
              {"how", "is bound to a forward; it ends when its layers have left, or at its deadline"}});
    cancelled_ = "discarded";
  }
  link_->engine().wake();
}

void Transfer::limit(std::chrono::milliseconds timeout) {
  std::lock_guard lock(mutex_);
  limit_ = timeout;
}

std::pair<int64_t, std::string> Transfer::wait() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return is_over(); });
  return {code_, why_};
}

std::tuple<int64_t, std::string, bool> Transfer::wait_for_outcome(std::chrono::milliseconds patience) {
  std::unique_lock lock(mutex_);
  begins_by_ = Clock::now() + patience;
  patience_ = patience;
  changed_.wait(lock, [this] { return is_over(); });
  return {code_, why_, code_ != kSuccess && !is_drained_};
}

std::tuple<bool, int64_t, std::string> Transfer::wait_until(Clock::time_point deadline) {
  std::unique_lock lock(mutex_);
  ++waiting_;
  link_->engine().wake();
  changed_.wait_until(lock, deadline, [this] { return is_over(); });
  --waiting_;
  return {is_over(), code_, why_};
}

std::tuple<bool, int64_t, std::string> Transfer::state() const {
  std::lock_guard lock(mutex_);
  // What failed has ended when nothing of it is queued any more: without a watchdog, when its stream is gone.
  const bool is_through = is_drained_ || (is_abandoned_ && has_left_its_stream());
  return {is_over() && (is_publication() || code_ == kSuccess || is_through), code_, why_};
}

// What it writes may be a long list: it is made once, and without the lock, which the watchdog needs.
std::optional<std::string> Transfer::why_in_doubt(const Destination& destination) {
  std::shared_ptr<LocalCache> local;
  std::shared_ptr<RemoteCache> remote;
  std::shared_ptr<const Destination> writes;
  std::string why;
  {
    std::lock_guard lock(mutex_);
    if (!is_in_doubt_ || plan_.way == TransferPlan::Way::kPacked) return std::nullopt;
    local = plan_.local;
    remote = plan_.remote;
    writes = writes_;
    why = why_;
  }
  if (writes == nullptr) {
    writes = std::make_shared<Destination>(*link_, plan_, local, remote);
    acl::ContextScope restore;  // we may be the last to hold the caches
    local.reset();
    remote.reset();
    std::lock_guard lock(mutex_);
    if (is_in_doubt_) writes_ = writes;
  }
  if (!writes->overlaps(destination)) return std::nullopt;
  return why;
}

bool Transfer::wait_drained(Clock::time_point deadline) {
  std::unique_lock lock(mutex_);
  link_->engine().wake();
  const auto is_through = [this] { return is_drained_ && is_over(); };
  changed_.wait_until(lock, deadline, [&] { return is_through() || is_abandoned_; });
  return is_through() || (is_abandoned_ && has_left_its_stream());
}

Gate Transfer::start_gate_for(int64_t local_layer) {
  std::lock_guard lock(mutex_);
  const size_t index = is_layered() ? static_cast<size_t>(local_layer - first_layer()) : 0;
  start_is_queued_[index] = true;
  return {start_[index].address, gate_refused_, is_layered() ? nullptr : link_->feeder()};
}

void Transfer::start_from_host(int64_t local_layer) {
  {
    std::lock_guard lock(mutex_);
    to_open_.push_back(start_[is_layered() ? static_cast<size_t>(local_layer - first_layer()) : 0]);
  }
  if (!is_layered()) link_->feeder()->wake();
  link_->engine().wake();
}

Gate Transfer::passed_word_for_hold() {
  std::lock_guard lock(mutex_);
  passed_is_queued_ = true;
  return {passed_.address, gate_refused_, nullptr};
}

void Transfer::bind(std::shared_ptr<Status> status, std::chrono::milliseconds timeout,
                    const std::set<int64_t>& open_layers, const char* asked) {
  std::lock_guard lock(mutex_);
  if (!is_layered() || is_claimed_ || has_ended_) {
    refuse(Message::task_has_ended, {{"asked", asked},
                                     {"peer", link_->peer().name},
                                     {"value", ticket()},
                                     {"how", has_ended_ ? "has ended already" : "was bound before"}});
  }
  is_claimed_ = true;
  if (plan_.timeout.count() == 0) plan_.timeout = timeout;
  status_ = std::move(status);
  for (const int64_t layer : open_layers) {
    if (carries(layer)) to_open_.push_back(start_[static_cast<size_t>(layer - first_layer())]);
  }
}

bool Transfer::is_bound() const {
  std::lock_guard lock(mutex_);
  return is_submitted_;
}

int64_t Transfer::ticket() const { return slot_ ? link_->ticket_of(*slot_) : 0; }

SentWord Transfer::sent_word(SentWord::State state, int64_t code) const {
  const int64_t first = plan_.remote_layers.first_layer;
  return {slot_->epoch,
          static_cast<uint8_t>(first),
          static_cast<uint8_t>(first + plan_.remote_layers.layers - 1),
          short_code(code),
          state,
          is_publication(),
          plan_.way != TransferPlan::Way::kDirect,
          plan_.way == TransferPlan::Way::kPacked,
          plan_.is_proven,
          is_submitted_ && plan_.is_proven && plan_.way == TransferPlan::Way::kDirect};
}

void Transfer::submission_ended(uint64_t mark, int64_t code, const std::string& what) {
  {
    std::lock_guard lock(mutex_);
    submission_has_ended_ = true;
    mark_ = mark;
    if (code != kSuccess) refused_ = {code, what};
  }
  if (code != kSuccess)
    link_->engine().wake();
  else
    link_->engine().wake_soon();
}

void Transfer::device_done() {
  std::lock_guard lock(mutex_);
  // What a ticket's holder gave up while it was read is not to be trusted: the watchdog looks.
  if (pull_round_ == nullptr) {
    end(kSuccess, "");
  } else {
    link_->engine().wake();
  }
}

void Transfer::look_at_host_copies(const Tick& tick) {
  const size_t passed = host_copies_->passed_marks();
  const bool is_through = host_copies_->has_passed_last_mark();
  if (const auto failure = host_copies_->failure()) {
    fail(tick, kFailed, why_failed(*failure));
  } else if (is_through) {
    tick.write(done_, 1);
    end(kSuccess, "");
  } else if (passed > passed_marks_) {
    tick.write(confirmed_, passed);
  }
  passed_marks_ = passed;
}

void Transfer::end(int64_t code, const std::string& why) {
  if (has_ended_) return;
  has_ended_ = true;
  code_ = code;
  why_ = why;
  if (!is_publication()) {
    if (code_ == kSuccess) {
      link_->count_success(bytes_of(plan_));
    } else {
      link_->count_failure();
    }
  }
  changed_.notify_all();
}

bool Transfer::has_started() const { return start_[0].seen() != 0; }

// Every word that a caller's stream was told to write is written, so none of them is read or written any
// more.
bool Transfer::streams_have_passed() const {
  if (gate_refused_->load()) return true;  // its stream takes nothing any more
  for (size_t i = 0; i < start_.size(); ++i) {
    if (start_is_queued_[i] && start_[i].seen() == 0) return false;
  }
  return !passed_is_queued_ || passed_.seen() != 0;
}

void Transfer::clock_gap(Clock::duration gap) {
  std::lock_guard lock(mutex_);
  if (deadline_) *deadline_ += gap;
  if (begins_by_) *begins_by_ += gap;
}

void Transfer::receiver_said(TakenWord taken) {
  std::lock_guard lock(mutex_);
  if (!slot_ || slot_->epoch != taken.epoch) return;
  if (taken.state != TakenWord::kRevoked && taken.state != TakenWord::kDiffers) {
    taken_ = taken;
  } else if (!cancelled_) {
    const std::initializer_list<Value> who{{"peer", link_->peer().name}, {"value", ticket()}};
    if (taken.state == TakenWord::kRevoked)
      cancelled_ = render(Message::receiver_gave_up, who);
    else if (long_code(taken.code) == kFailed)
      cancelled_ = render(Message::receiver_found_other_bytes, who);
    else
      cancelled_ = render(Message::receiver_could_not_look, who);
  }
}

void Transfer::abandon(const std::string& why) {
  std::lock_guard lock(mutex_);
  end(kFailed, why);
  is_settled_ = true;
  is_abandoned_ = true;
  changed_.notify_all();
}

std::optional<std::pair<int64_t, std::string>> Transfer::trouble(const Tick& tick) {
  using Trouble = std::pair<int64_t, std::string>;
  const std::string& peer = link_->peer().name;
  if (!link_->is_alive()) return link_->reason();
  if (gate_refused_->load())
    return Trouble(kFailed, render(Message::gate_was_refused, {{"value", "a gate"}}));
  if (refused_) return Trouble(refused_->first, why_failed(refused_->second));
  if (deadline_ && tick.now >= *deadline_) {
    const int64_t limit = plan_.timeout.count();
    if (is_publication())
      return Trouble(kTimeout, render(Message::publication_is_late, {{"peer", peer}, {"value", limit}}));
    late_values_ = {{"into", into()},
                    {"peer", peer},
                    {"value", limit},
                    {"why", is_never_expected() ? "; the receiver never called expect for it" : ""}};
    return Trouble(kTimeout, render(Message::transfer_is_late, late_values_));
  }
  if (cancelled_) return Trouble(kFailed, *cancelled_);
  if (never_began(tick.now))
    return Trouble(kTimeout,
                   render(Message::transfer_never_began,
                          {{"into", into()}, {"peer", peer}, {"value", int64_t{patience_.count()}}}));
  return std::nullopt;
}

std::string Transfer::why_failed(const std::string& reason) const {
  const std::string& peer = link_->peer().name;
  if (is_message(reason)) return join("the transfer with ", peer, ": ", reason);
  return render(Message::transfer_failed, {{"into", into()}, {"peer", peer}, {"value", reason}});
}

// Where it writes, for a message.
std::string Transfer::into() const {
  constexpr size_t kNamed = 4;
  if (is_publication()) return "";
  const bool is_push = plan_.direction == Direction::kPush;
  std::string name =
      join(" into cache ", is_push ? plan_.remote->id : plan_.local->id, is_push ? " there (" : " (");
  if (plan_.shape.layout == Layout::kEntry) return join(name, "batch entry ", plan_.shape.dst_entry, ")");
  if (plan_.runs.empty()) return join(name, plan_.packed_src.size(), " blocks)");
  name += "blocks";
  for (size_t i = 0; i < std::min(kNamed, plan_.runs.size()); ++i) {
    const auto [_, first, blocks] = plan_.runs[i];
    name += join(i == 0 ? " " : ", ", first, blocks == 1 ? "" : join(" to ", first + blocks - 1));
  }
  return name + (plan_.runs.size() > kNamed ? ", ...)" : ")");
}

bool Transfer::tick(const Tick& tick) {
  if (takes_off()) link_->feeder()->submit(lane_, std::make_unique<PackedProgram>(shared_from_this()));
  std::lock_guard lock(mutex_);
  for (const Word& gate : to_open_) tick.write(gate, 1);
  to_open_.clear();
  if (is_publication()) return tick_publication(tick);
  if (!has_ended_ && pull_round_ != nullptr) look_at_holder(tick);
  if (!has_ended_ && host_copies_ != nullptr) look_at_host_copies(tick);
  if (!has_ended_) judge(tick);
  if (!has_ended_) return false;
  if (!is_drained_ && has_left_its_stream()) drained();
  return is_drained_ && streams_have_passed();
}

void Transfer::look_at_holder(const Tick& tick) {
  if (const auto given_up = pull_round_->given_up()) {
    fail(tick, given_up->first, given_up->second);
  } else if (!link_->is_alive()) {
    const auto [code, why] = link_->reason();
    fail(tick, code, why);
  }
}

void Transfer::judge(const Tick& tick) {
  // A blocking call's deadline starts when the earlier work of the caller's stream is done.
  if (!is_layered() && !deadline_ && has_started()) deadline_ = tick.now + plan_.timeout;
  if (may_be_a_death()) return;
  if (limit_ && is_released()) {
    plan_.timeout = *limit_;
    deadline_ = tick.now + *limit_;
    limit_.reset();
  }
  if (done_.seen() != 0) {
    end(kSuccess, "");
  } else if (const auto found = trouble(tick)) {
    fail(tick, found->first, found->second);
  }
}

// A process that dies loses its memory before it counts as dead. So while a peer whose memory cannot be
// mapped gives no sign of life, the reason waits for the verdict on the link: one beat may have been on its
// way, the second is of a peer that lives.
bool Transfer::may_be_a_death() {
  if (!refused_ || !peers_memory_is_refused_ || !link_->is_alive()) return false;
  if (!beats_at_refusal_) beats_at_refusal_ = link_->beats();
  return link_->beats() < *beats_at_refusal_ + 2;
}

bool Transfer::tick_publication(const Tick& tick) {
  if (!has_ended_ && !taken_) {
    if (const auto found = trouble(tick)) fail(tick, found->first, found->second);
  }
  const bool is_out = has_ended_ || done_.seen() != 0;
  if (is_out && !is_drained_ && has_left_its_stream()) drained();
  if (!is_settled_ && is_drained_ && (taken_ || (has_ended_ && !link_->may_be_touched()))) settle();
  // A holder that only polls learns of it at the watchdog's slow pace.
  return is_drained_ && streams_have_passed() && waiting_ == 0;
}

// Nothing of the receiver reads the blocks any more.
void Transfer::settle() {
  if (taken_ && taken_->state == TakenWord::kRetired && taken_->code == 0) {
    code_ = kSuccess;  // also when it was given up here, just too late
    why_.clear();
  } else if (taken_ && taken_->state == TakenWord::kDiscarded) {
    code_ = kFailed;
    why_ = render(Message::receiver_discarded, {{"peer", link_->peer().name}, {"value", ticket()}});
  } else if (taken_ && !has_ended_) {
    code_ = long_code(taken_->code);
    why_ = render(Message::receiver_could_not_pull, {{"peer", link_->peer().name}, {"value", ticket()}});
  }
  has_ended_ = true;
  is_settled_ = true;
  changed_.notify_all();
}

bool Transfer::has_left_its_stream() const {
  return !is_submitted_ || (submission_has_ended_ && lane_->has_passed(mark_)) || lane_->is_dropped();
}

void Transfer::drained() {
  is_drained_ = true;
  if (has_ended_ && code_ == kTimeout && !late_values_.empty())
    why_ = render(Message::transfer_was_late, late_values_);
  if (std::exchange(is_in_doubt_, false)) link_->engine().doubt_ends();
  writes_.reset();
  changed_.notify_all();
  if (slot_)
    link_->slot_drained(*slot_, sent_word(code_ == kSuccess ? SentWord::kDrained : SentWord::kFailed, code_));
  if (host_copies_ != nullptr) host_copies_->close();
  if (owns_lane_ && staging_ != nullptr) link_->give_back_staging(staging_);
  if (lane_) link_->give_back_lane(lane_);
  link_->staging().give_back_ids(std::move(ids_));
  acl::ContextScope restore;  // unmapping through torch's allocator changes the thread's
  plan_.local.reset();
  plan_.remote.reset();
  link_->transfer_retired();
  owns_lane_ = false;
  if (pull_round_ != nullptr) pull_round_->finish(code_, why_);
}

void Transfer::fail(const Tick& tick, int64_t code, const std::string& why) {
  // The error first, then the release: a stream that goes on finds the code.
  status_->set(tick, code);
  tick.write(done_, 1);
  // What waits on a stream of its own is cut off there: none of its copies lands later.
  // Likewise where nobody else is behind it.
  const bool never_starts =
      gate_refused_->load() || (never_began(tick.now) && lane_ && !link_->is_shared(lane_));
  if ((owns_lane_ || never_starts) && lane_ && !is_drained_ && !lane_->is_dropped())
    link_->feeder()->drop_lane(lane_);
  if (is_publication() && is_drained_) link_->announce(*slot_, sent_word(SentWord::kFailed, code));
  if (is_submitted_ && !is_drained_ && !is_publication()) {
    is_in_doubt_ = true;
    link_->engine().doubt_begins();
  }
  end(code, why);
}

bool Transfer::is_drained() const {
  std::lock_guard lock(mutex_);
  return is_drained_;
}

bool Transfer::is_retired() const {
  std::lock_guard lock(mutex_);
  return is_drained_ && streams_have_passed() && is_over();
}

HandleTable<Transfer>& tasks() {
  static auto* table = new HandleTable<Transfer>("task");
  return *table;
}

}  // namespace datadist
