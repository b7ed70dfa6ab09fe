#include "link/ticket.h"

#include "error.h"
#include "link/engine.h"
#include "link/expectation.h"
#include "link/forked.h"
#include "link/link.h"
#include "link/proven_push.h"
#include "messages/messages.h"

namespace datadist {
namespace {

constexpr const char* kDiscarded = "discarded";
constexpr const char* kCancelled = "cancelled by its receiver";

}  // namespace

std::shared_ptr<Ticket> find_ticket(int64_t number, const char* asked,
                                    std::optional<Clock::time_point> deadline) {
  require_not_forked(asked);
  const TicketNumber ticket = TicketNumber::unpack(number);
  const auto link = number > 0 ? links().find(ticket.link) : nullptr;
  if (link == nullptr || ticket.slot >= kSlots)
    refuse(Message::no_such_ticket, {{"asked", asked}, {"value", number}});
  while (true) {
    const uint32_t ahead = (ticket.epoch_low - link->sent(ticket.slot).epoch) & TicketNumber::kEpochMask;
    if (ahead > TicketNumber::kEpochMask / 2)
      refuse(Message::ticket_is_used_up, {{"asked", asked},
                                          {"value", number},
                                          {"peer", link->peer().name},
                                          {"why", "its slot has been issued again since"}});
    if (ahead == 0 && link->is_told_of(ticket.slot))
      return link->ticket(ticket.slot, ticket.epoch_low, asked);
    link->require_alive(asked);
    if (!deadline) return nullptr;
    if (!link->engine().wait_for_tick(*deadline)) {
      refuse(Message::not_confirmed_in_time,
             {{"asked", asked}, {"peer", link->peer().name}, {"value", number}});
    }
  }
}

bool was_discarded(int64_t number) {
  require_not_forked("discard");
  const TicketNumber ticket = TicketNumber::unpack(number);
  const auto link = number > 0 ? links().find(ticket.link) : nullptr;
  if (link == nullptr || ticket.slot >= kSlots) return false;
  const auto outcome = link->look_up(ticket.slot, ticket.epoch_low).first;
  return outcome && outcome->why == kDiscarded;
}

std::tuple<bool, int64_t, std::string> ticket_state(int64_t number) {
  require_not_forked("ticket_state");
  const TicketNumber ticket = TicketNumber::unpack(number);
  const auto link = number > 0 ? links().find(ticket.link) : nullptr;
  if (link == nullptr || ticket.slot >= kSlots)
    refuse(Message::no_such_ticket, {{"asked", "ticket_state"}, {"value", number}});
  // Before the look: what was cancelled ahead becomes a ticket that is cancelled at any time.
  const bool is_cancelled_ahead = link->is_cancelled_ahead(ticket.slot, ticket.epoch_low);
  const auto [outcome, held] = link->look_up(ticket.slot, ticket.epoch_low);
  if (outcome) return {!outcome->awaits_sender || !link->may_be_touched(), outcome->code, outcome->why};
  // Without a watchdog nobody ends it.
  const bool is_left_alone = !link->is_alive() && link->engine().has_stopped();
  if (held != nullptr && !is_left_alone && !(is_cancelled_ahead && link->is_alive())) return held->state();
  const uint32_t ahead = (ticket.epoch_low - link->sent(ticket.slot).epoch) & TicketNumber::kEpochMask;
  if (ahead > TicketNumber::kEpochMask / 2) {
    refuse(Message::ticket_is_used_up, {{"asked", "ticket_state"},
                                        {"value", number},
                                        {"peer", link->peer().name},
                                        {"why", "its slot has been issued again since"}});
  }
  if (!link->is_alive()) {
    const auto [code, why] = link->reason();
    return {!link->may_be_touched(), code, why};
  }
  if (is_cancelled_ahead) return {false, kFailed, kCancelled};
  return {false, kSuccess, ahead == 0 ? "nobody waits for it yet" : "not confirmed by its sender yet"};
}

std::tuple<bool, int64_t, std::string> cancel_ticket(int64_t number, Clock::time_point deadline) {
  const TicketNumber ticket = TicketNumber::unpack(number);
  const auto link = number > 0 ? links().find(ticket.link) : nullptr;
  auto state = ticket_state(number);
  bool is_ahead = link != nullptr && link->is_cancelled_ahead(ticket.slot, ticket.epoch_low);
  if (!std::get<0>(state) && std::get<1>(state) == kSuccess) {
    try {
      if (const auto found = find_ticket(number, "cancel", std::nullopt)) {
        found->cancel(kCancelled);
      } else {
        link->cancel_ahead(ticket.slot, ticket.epoch_low, kCancelled);
        is_ahead = true;
      }
    } catch (const Error&) {
      // It has ended, or its link died just now: the state says so.
    }
  }
  while (true) {
    try {
      state = ticket_state(number);
    } catch (const Error& error) {
      // Its link is gone for good and the index serves another, or its slot was issued again: it has ended.
      return {true, error.code(), error.what()};
    }
    const bool is_given_up = is_ahead && !link->is_cancelled_ahead(ticket.slot, ticket.epoch_low);
    if (!(!is_given_up ||
          link->sent(ticket.slot).epoch % (TicketNumber::kEpochMask + 1) == ticket.epoch_low ||
          std::get<0>(state) || std::get<1>(state) != kSuccess))
      refuse(Message::ticket_was_never_issued, {{"value", number}, {"peer", link->peer().name}});
    if (std::get<0>(state) || !link->engine().wait_for_tick(deadline)) return state;
  }
}

std::tuple<bool, int64_t, std::string> Ticket::state() const {
  std::lock_guard lock(mutex_);
  // Given up, and the watchdog has not looked yet: its sender may write all the same.
  if (!has_ended_ && is_discarded_) return {false, kSuccess, kDiscarded};
  if (!has_ended_ && !is_bound_ && cancelled_) return {false, kFailed, *cancelled_};
  // A transfer that failed has ended when its sender confirmed that nothing more is written; the link then
  // forgets us and answers for us. Until then its blocks are in doubt.
  return {has_ended_ && !may_be_written(), code_, why_};
}

// By copies of the sender's, or by a scatter of ours. What goes packed lands in staging, whatever the sender
// still does.
bool Ticket::may_be_written() const {
  if (expectation_ != nullptr && !expectation_->is_direct()) return !expectation_->is_over();
  return must_hear_from_sender_;
}

void Ticket::expect(std::shared_ptr<Expectation> expectation) {
  {
    std::lock_guard lock(mutex_);
    if (is_discarded_ || cancelled_ || has_ended_)
      refuse(Message::ticket_has_ended, {{"asked", "expect"}, {"value", name()}, {"how", how_it_ended()}});
    if (expectation_ != nullptr) {
      refuse(Message::ticket_is_in_use,
             {{"asked", "expect"}, {"value", name()}, {"how", "is expected already"}});
    }
    expectation_ = expectation;
    link_->expect(use_);  // with the lock, so that no last word on the slot comes before this one
  }
  const SentWord sent = link_->sent(use_.slot);
  expectation->start_if_ready(sent.epoch == use_.epoch && sent.is_packed);
}

// Before the waits: a bad id is in the status before anything passes them. Waits may end by what the scatter
// writes, on a stream of its own, so that begins when the status was seen to be written.
void Ticket::look_at_expectation(const Tick& tick, SentWord sent) {
  const bool is_bad = is_bound_ && status_ != nullptr && expectation_->bad_ids();
  if (is_bad) status_->set(tick, kParamInvalid);
  const bool is_reported = is_bad && status_->is_there();
  expectation_->tick(tick, sent.epoch == use_.epoch ? sent : SentWord(), is_reported);
  if (has_ended_ && sent.epoch == use_.epoch && sent.state == SentWord::kFailed) expectation_->cut();
}

// What differs fails it, also where all who waited for other layers have gone on.
void Ticket::look_at_proof(const Tick& tick, SentWord sent, bool link_is_alive) {
  const bool is_this = sent.epoch == use_.epoch;
  if (proven_ == nullptr && is_this && sent.is_begun && sent.state == SentWord::kOpen && !has_ended_ &&
      !is_discarded_ && !cancelled_ && link_is_alive) {
    proven_ = std::make_shared<ProvenPush>(link_, use_, first_layer_, last_layer_ - first_layer_ + 1);
  }
  if (proven_ != nullptr) proven_->tick(tick);
  const auto failure = proven_ != nullptr
                           ? proven_->failure()
                           : (expectation_ != nullptr ? expectation_->failure() : std::nullopt);
  if (failure && code_ == kSuccess && !is_discarded_)
    fail(tick, failure->first,
         is_message(failure->second)
             ? join(link_->peer().name, ": ", failure->second)
             : render(Message::ticket_was_not_looked_at,
                      {{"value", number()}, {"peer", link_->peer().name}, {"why", failure->second}}),
         TakenWord::kDiffers);
  if (proven_ != nullptr && ((has_ended_ && code_ != kSuccess) || is_discarded_ || !link_is_alive ||
                             (is_this && sent.state == SentWord::kFailed)))
    proven_->cut();
}

void Ticket::bind(std::shared_ptr<Status> status, std::shared_ptr<WaitRound> waits,
                  std::chrono::milliseconds timeout, const char* asked) {
  std::lock_guard lock(mutex_);
  require_free(asked);
  is_bound_ = true;
  status_ = std::move(status);
  waits_ = std::move(waits);
  timeout_ = timeout;
  deadline_ = Clock::now() + timeout;
}

void Ticket::unbind() {
  std::lock_guard lock(mutex_);
  is_bound_ = false;
  status_.reset();
  waits_.reset();
}

int64_t Ticket::number() const {
  return TicketNumber{link_->handle(), use_.slot, use_.epoch & TicketNumber::kEpochMask}.pack();
}

std::string Ticket::name() const {
  return join("the ticket of slot ", use_.slot, " from ", link_->peer().name);
}

void Ticket::require_push(const char* asked) const {
  if (is_publication_) refuse(Message::ticket_is_a_publication, {{"asked", asked}, {"value", name()}});
}

void Ticket::require_free(const char* asked) const {
  if (is_discarded_ || has_ended_ || (!is_bound_ && cancelled_))
    refuse(Message::ticket_has_ended, {{"asked", asked}, {"value", name()}, {"how", how_it_ended()}});
  if (is_bound_) {
    const char* how = pull_ != nullptr ? "is being pulled with already" : "is bound already";
    refuse(Message::ticket_is_in_use, {{"asked", asked}, {"value", name()}, {"how", how}});
  }
}

const char* Ticket::how_it_ended() const {
  return is_discarded_ ? "was discarded" : (cancelled_ ? "was cancelled" : "has ended already");
}

void Ticket::claim(std::shared_ptr<PullRound> pull, int64_t cache, int64_t first_tensor, int64_t tensors,
                   const char* asked) {
  std::lock_guard lock(mutex_);
  require_free(asked);
  if (!is_publication_) refuse(Message::ticket_is_of_a_push, {{"asked", asked}, {"value", name()}});
  if ((static_cast<uint64_t>(cache) & PublishedWord::kCacheMask) != published_.cache) {
    refuse(Message::ticket_for_another_cache,
           {{"asked", asked}, {"ticket", name()}, {"found", published_.cache}, {"value", cache}});
  }
  if (first_tensor < published_.first_tensor ||
      first_tensor + tensors > int64_t{published_.first_tensor} + published_.tensors) {
    refuse(Message::ticket_for_other_tensors, {{"asked", asked},
                                               {"ticket", name()},
                                               {"count", published_.tensors},
                                               {"first", published_.first_tensor},
                                               {"value", tensors},
                                               {"wanted", first_tensor}});
  }
  is_bound_ = true;
  pull_ = std::move(pull);
}

void Ticket::unclaim() {
  std::lock_guard lock(mutex_);
  is_bound_ = false;
  pull_.reset();
}

void Ticket::discard() {
  std::lock_guard lock(mutex_);
  if (is_bound_)
    refuse(Message::ticket_is_taken,
           {{"value", name()},
            {"how", pull_ != nullptr
                        ? "is being pulled with; it ends with the pull"
                        : "is bound to a forward; it ends when its layers arrived, or at its deadline"}});
  is_discarded_ = true;
}

void Ticket::cancel(const std::string& why) {
  std::lock_guard lock(mutex_);
  if (has_ended_ || is_discarded_ || cancelled_) return;
  cancelled_ = why;
}

bool Ticket::awaits_sender() const {
  std::lock_guard lock(mutex_);
  if (expectation_ != nullptr && !expectation_->is_direct()) return false;  // it writes to staging only
  return must_hear_from_sender_ && !sender_is_done_;
}

bool Ticket::begin_wait() {
  std::lock_guard lock(mutex_);
  if (is_released_) return false;
  waits_->op_begins();
  return true;
}

bool Ticket::begin_relayed_wait() {
  std::lock_guard lock(mutex_);
  if (is_released_) return false;
  waits_->relay_begins();
  return true;
}

bool Ticket::waits_have_passed(bool flags_are_set) const {
  return !is_bound_ || (pull_ != nullptr ? pull_->is_finished() : waits_->has_passed(flags_are_set));
}

std::optional<std::pair<int64_t, std::string>> Ticket::failure_of_waits() const {
  return pull_ != nullptr ? pull_->failure() : waits_->failure();
}

void Ticket::clock_gap(Clock::duration gap) {
  std::lock_guard lock(mutex_);
  deadline_ += gap;
}

bool Ticket::tick(const Tick& tick, SentWord sent, bool link_is_alive) {
  std::lock_guard lock(mutex_);
  const bool sender_is_done = sent.epoch == use_.epoch && sent.state >= SentWord::kDrained;
  sender_is_done_ = sender_is_done;
  if (expectation_ != nullptr) look_at_expectation(tick, sent);
  if (is_proven_) look_at_proof(tick, sent, link_is_alive);
  // Of what goes packed the flags are ours to write, behind the scatter; so they are of what is proven.
  const bool is_scattered =
      (expectation_ == nullptr || expectation_->is_direct() || expectation_->is_over()) &&
      (proven_ == nullptr || proven_->is_over());
  const bool flags_are_set =
      is_poisoned_ || (sender_is_done && sent.state == SentWord::kDrained && is_scattered);
  if (!has_ended_) {
    if (is_bound_ && waits_have_passed(flags_are_set)) {
      if (const auto failure = failure_of_waits()) {
        fail(tick, failure->first, failure->second);
      } else {
        has_ended_ = true;
        if (const auto bad = expectation_ != nullptr ? expectation_->bad_ids() : std::nullopt) {
          code_ = kParamInvalid;
          why_ = *bad;
        }
      }
    } else if (is_bound_ && pull_ == nullptr && flags_are_set) {
      // All has arrived. Who waits goes on without us.
    } else if (is_bound_ && pull_ == nullptr && waits_->given_up()) {
      fail(tick, kFailed, render(Message::layers_were_not_awaited, {{"value", *waits_->given_up()}}));
    } else if (!link_is_alive) {
      const auto [code, why] = link_->reason();
      fail(tick, code, why);
    } else if (sender_is_done && sent.state == SentWord::kFailed) {
      fail(tick, long_code(sent.code), link_->why_sender_failed(sent));
    } else if (is_bound_ && pull_ == nullptr && !sender_is_done && tick.now >= deadline_) {
      fail(tick, kTimeout,
           render(Message::ticket_is_late, {{"value", number()},
                                            {"first", first_layer_},
                                            {"last", last_layer_},
                                            {"peer", link_->peer().name},
                                            {"timeout", timeout_.count()}}));
    } else if (cancelled_) {
      fail(tick, kFailed, *cancelled_);
    } else if (is_discarded_) {
      has_ended_ = true;
      why_ = kDiscarded;
      if (!sender_is_done) link_->revoke(use_, kSuccess);
      must_hear_from_sender_ = true;
      if (expectation_ != nullptr) expectation_->cut();
    }
  }
  if (!has_ended_) return false;
  if (expectation_ != nullptr) {
    if (!link_is_alive) expectation_->cut();
    if (sender_is_done) expectation_->sender_is_done();
    if (!expectation_->is_over() && !is_poisoned_) return false;
  }
  if (proven_ != nullptr && !proven_->is_over() && !is_poisoned_) return false;
  if (is_poisoned_ && !(waits_have_passed(true) && (sender_is_done || !link_is_alive))) {
    // A late flag write may undo the release, so it is repeated until nobody writes or waits any more.
    write_flags(tick, poison_of(use_.epoch));
    return false;
  }
  if (!waits_have_passed(flags_are_set)) return false;
  if (expectation_ != nullptr && !expectation_->is_over()) return false;
  if (proven_ != nullptr && !proven_->is_over()) return false;
  is_released_ = true;
  if (!link_is_alive) return true;  // the page goes with the link
  if (must_hear_from_sender_ && !sender_is_done) return false;
  if (is_poisoned_ && !is_zeroed_) {
    write_flags(tick, 0);
    is_zeroed_ = true;
    return false;  // the zeroes are done at the next tick, which syncs the stream first
  }
  link_->retire(use_, code_, is_discarded_ ? TakenWord::kDiscarded : TakenWord::kRetired);
  return true;
}

void Ticket::write_flags(const Tick& tick, uint64_t value) {
  for (int64_t layer = first_layer_; layer <= last_layer_; ++layer)
    tick.write(link_->own_flag(use_.slot, layer), value);
}

void Ticket::fail(const Tick& tick, int64_t code, const std::string& why, TakenWord::State told) {
  if (pull_ != nullptr) {
    pull_->give_up(code, why);  // which cuts its own stream off, with the waits on it
  } else if (is_bound_) {
    // The error first, then the release: a stream that goes on finds the code.
    status_->set(tick, code);
    write_flags(tick, poison_of(use_.epoch));
    is_poisoned_ = true;
  }
  if (expectation_ != nullptr) expectation_->cut();
  if (proven_ != nullptr) proven_->cut();
  has_ended_ = true;
  code_ = code;
  why_ = why;
  must_hear_from_sender_ = true;
  link_->revoke(use_, code, told);
}

}  // namespace datadist
