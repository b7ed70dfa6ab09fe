// The words that the two ends of a link exchange: what the peer has written into our page, and what goes into
// its.
#include <algorithm>

#include "acl/queue.h"
#include "error.h"
#include "link/engine.h"
#include "link/link.h"
#include "link/ticket.h"
#include "link/transfer.h"

namespace datadist {

void Link::read_mail(const Tick& tick) {
  const Mail& mail = *page_.mail;
  liveness_.look(mail.heartbeat, tick.now);
  // Looked at once more at the tick after: one copy brings the sequence and the words, in whatever order.
  std::vector<std::pair<TakenWord, std::shared_ptr<Transfer>>> told;
  const bool has_news = mail.sequence != seen_sequence_;
  if (has_news || must_reread_) {
    must_reread_ = has_news;
    seen_sequence_ = mail.sequence;
    std::lock_guard lock(mutex_);
    std::copy(mail.sent, mail.sent + kSlots, sent_.begin());
    std::copy(mail.published, mail.published + kSlots, published_.begin());
    retire_what_failed_unasked();
    for (uint32_t slot = 0; slot < kSlots; ++slot) {
      const TakenWord taken = TakenWord::unpack(mail.taken[slot]);
      if (taken.state == TakenWord::kNone) continue;
      if (taken.state == TakenWord::kExpected) {
        expected_[slot] = taken.epoch;
        continue;
      }
      const bool is_wish = taken.state == TakenWord::kRevoked || taken.state == TakenWord::kDiffers;
      if (!is_wish && slots_.retired({slot, taken.epoch})) packed_staging_.give_back_window(slot);
      if (auto transfer = sending_[slot].lock()) told.emplace_back(taken, std::move(transfer));
    }
  }
  // Without the lock: a transfer takes its own first, then ours.
  for (const auto& [taken, transfer] : told) transfer->receiver_said(taken);
  if (mail.state == kEndIsClosed) die(kNotYetLink, "the peer closed it");
}

// A transfer that its sender gave up before anybody here asked for it: no ticket will, so the slot goes back
// at once.
void Link::retire_what_failed_unasked() {
  for (uint32_t slot = 0; slot < kSlots; ++slot) {
    const SentWord sent = SentWord::unpack(sent_[slot]);
    if (sent.state != SentWord::kFailed || outcomes_[slot].epoch == sent.epoch) continue;
    const bool is_asked_for = std::any_of(tickets_.begin(), tickets_.end(), [&](const auto& ticket) {
      return ticket->use().slot == slot && ticket->use().epoch == sent.epoch;
    });
    if (is_asked_for) continue;
    outcomes_[slot] = {sent.epoch, long_code(sent.code), why_sender_failed(sent)};
    outbox_.push_back({offsetof(Mail, taken) + slot * sizeof(uint64_t),
                       TakenWord{sent.epoch, sent.code, TakenWord::kRetired}.pack()});
  }
}

// What arrives with a proven ticket is looked at as it arrives, whether or not somebody here has asked for it
// yet: its sender waits for that.
void Link::meet_proven_pushes() {
  std::vector<SlotUse> met;
  {
    std::lock_guard lock(mutex_);
    for (uint32_t slot = 0; slot < kSlots; ++slot) {
      const SentWord sent = SentWord::unpack(sent_[slot]);
      if (!sent.is_begun || sent.state != SentWord::kOpen || outcomes_[slot].epoch == sent.epoch) continue;
      // One of a slot: a peer that issues it again before it went back gets no stream for that.
      const bool is_held = std::any_of(tickets_.begin(), tickets_.end(),
                                       [&](const auto& ticket) { return ticket->use().slot == slot; });
      if (!is_held) met.push_back({slot, sent.epoch});
    }
  }
  for (const auto [slot, epoch] : met) {
    try {
      if (is_told_of(slot)) ticket(slot, epoch & TicketNumber::kEpochMask, "verify_blocks");
    } catch (const Error&) {
      // It makes no sense, and whoever asks for it is told so.
    }
  }
}

void Link::cancel_ahead(uint32_t slot, uint32_t epoch_low, const std::string& why) {
  {
    std::lock_guard lock(mutex_);
    std::erase_if(cancelled_ahead_, [&](const auto& other) { return other.slot == slot; });
    cancelled_ahead_.push_back({slot, epoch_low, why, std::nullopt});
  }
  engine_->wake();
}

bool Link::is_cancelled_ahead(uint32_t slot, uint32_t epoch_low) const {
  std::lock_guard lock(mutex_);
  return std::any_of(cancelled_ahead_.begin(), cancelled_ahead_.end(), [&](const auto& cancelled) {
    return cancelled.slot == slot && cancelled.epoch_low == epoch_low;
  });
}

void Link::cancel_what_was_told() {
  std::vector<CancelledAhead> waiting;
  {
    std::lock_guard lock(mutex_);
    for (CancelledAhead& cancelled : cancelled_ahead_) {
      if (!cancelled.beats) cancelled.beats = liveness_.beats();
    }
    waiting = cancelled_ahead_;
  }
  for (const CancelledAhead& cancelled : waiting) {
    const auto [slot, epoch_low, why, beats] = cancelled;
    const uint32_t ahead = (epoch_low - sent(slot).epoch) & TicketNumber::kEpochMask;
    const bool is_used_up = ahead > TicketNumber::kEpochMask / 2;
    const bool is_told = ahead == 0 && is_told_of(slot);
    // A sender tells of a ticket before its application can: at the latest with its next word, so that two
    // beats are enough, and one more for a word that the runtime refused.
    const bool is_never_issued = !is_told && ahead != 0 && liveness_.beats() >= *beats + 4;
    if (!is_used_up && !is_told && !is_never_issued) continue;
    try {
      // Without our lock: a ticket takes its own first.
      if (is_told) ticket(slot, epoch_low, "cancel")->cancel(why);
    } catch (const Error&) {
      // Its sender gave it up first.
    }
    std::lock_guard lock(mutex_);
    std::erase_if(cancelled_ahead_,
                  [&](const auto& other) { return other.slot == slot && other.epoch_low == epoch_low; });
  }
}

// Words only, and in order: what a word tells is true before the sequence says that there is news.
void Link::send_mail(const Tick& tick) {
  std::vector<Outgoing> outgoing;
  char* peer_page = nullptr;
  {
    std::lock_guard lock(mutex_);
    // Nothing follows the last word: the peer may use its page for another link from then on.
    if (peer_page_ == nullptr || closed_is_written_ || peer_is_gone_) {
      outbox_.clear();
      const bool may_be_lost = peer_page_ == nullptr || peer_is_gone_;
      if (is_over() && !told_closed_ && acl::has_run_dry(tick.mail))
        told_closed_ = may_be_lost || transport_->has_sent_all();
      return;
    }
    outgoing.swap(outbox_);
    peer_page = peer_page_;
  }
  const auto write = [&](size_t offset, uint64_t value) {
    return transport_->write_word(peer_page + offset, value, tick.mail_word, tick.mail) == 0;
  };
  // A word that was refused goes again at the next tick; one that fails on the device is a peer's death,
  // noticed elsewhere.
  const auto refused = std::find_if_not(outgoing.begin(), outgoing.end(),
                                        [&](const Outgoing& word) { return write(word.offset, word.value); });
  if (refused != outgoing.begin()) owes_sequence_ = true;
  if (owes_sequence_ && write(offsetof(Mail, sequence), sequence_ + 1)) {
    ++sequence_;
    owes_sequence_ = false;
  }
  if (refused != outgoing.end()) {
    std::lock_guard lock(mutex_);
    outbox_.insert(outbox_.begin(), refused, outgoing.end());
  }
  if (!outgoing.empty() || tick.now - beat_at_ >= Liveness::beat_every(options_.keep_alive)) {
    write(offsetof(Mail, heartbeat), ++heartbeat_);
    beat_at_ = tick.now;
  }
  // The last word: the link is over and its streams are drained, so nothing more will be written to that
  // page.
  if (is_over() && streams_have_stopped()) closed_is_written_ = write(offsetof(Mail, state), kEndIsClosed);
}

}  // namespace datadist
