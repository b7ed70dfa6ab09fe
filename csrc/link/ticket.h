// The receiver's side of one transfer: what a binding waits for. It is found by the small integer that the
// sender's application handed on.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <tuple>

#include "link/page.h"
#include "link/pull_round.h"
#include "link/slots.h"
#include "link/status.h"
#include "link/tick.h"
#include "link/wait_round.h"

namespace datadist {

class Expectation;
class Link;
class ProvenPush;

// link (20 bits) | slot (10) | epoch (22): below 2^53, so that it survives JSON readers that know only
// doubles.
struct TicketNumber {
  int64_t link;
  uint32_t slot;
  uint32_t epoch_low;
  static constexpr uint32_t kEpochMask = (1u << 22) - 1;
  int64_t pack() const { return link << 32 | int64_t{slot} << 22 | epoch_low; }
  static TicketNumber unpack(int64_t number) {
    return {number >> 32, static_cast<uint32_t>(number >> 22 & 0x3FF),
            static_cast<uint32_t>(number) & kEpochMask};
  }
};

class Ticket;

// The ticket behind a number that another process's application handed over. The sender's own word on it may
// still be on its way, since that message overtook it: waits for it until `deadline` (LLM_TIMEOUT), and
// raises for a number that is no ticket of a live link, or used up. Returns nullptr instead of waiting when
// there is no deadline.
std::shared_ptr<Ticket> find_ticket(int64_t number, const char* asked,
                                    std::optional<Clock::time_point> deadline);

// It was, here, and its slot was not issued again since.
bool was_discarded(int64_t number);

// (has ended, code, detail) of a ticket, also of one that is used up, as long as its slot was not issued
// again.
std::tuple<bool, int64_t, std::string> ticket_state(int64_t number);

// Gives it up, also one that a forward waits for or that is being pulled with; its state once nothing of it
// is written any more, or at the deadline.
std::tuple<bool, int64_t, std::string> cancel_ticket(int64_t number, Clock::time_point deadline);

class Ticket {
 public:
  Ticket(std::shared_ptr<Link> link, SlotUse use, SentWord sent, PublishedWord published, OfferWord offer)
      : link_(std::move(link)),
        use_(use),
        first_layer_(sent.first_layer),
        last_layer_(sent.last_layer),
        is_publication_(sent.is_publication),
        published_(published),
        is_offer_(sent.is_offer),
        is_proven_(sent.is_proven),
        offer_(offer) {}

  bool carries(int64_t layer) const { return layer >= first_layer_ && layer <= last_layer_; }
  int64_t first_layer() const { return first_layer_; }
  int64_t last_layer() const { return last_layer_; }
  void require_push(const char* asked) const;  // it brings layers; a publication brings none
  SlotUse use() const { return use_; }
  int64_t number() const;
  const Link& link() const { return *link_; }
  // (has ended, code, detail): ended with 0 means that all layers arrived and all waits passed; with another
  // code that nothing of it is written any more.
  std::tuple<bool, int64_t, std::string> state() const;

  // Binding. From here on the deadline runs; an error is written to `status` before the flags are released.
  void bind(std::shared_ptr<Status> status, std::shared_ptr<WaitRound> waits,
            std::chrono::milliseconds timeout, const char* asked);
  void unbind();  // nothing was queued after all
  // An op is about to wait for its flags on its stream, or a relay is; false: they came, or never will, and
  // mean nothing any more.
  bool begin_wait();
  bool begin_relayed_wait();
  void discard();
  // Bound or not: it fails at the watchdog's next look, and its sender is asked to send nothing more.
  void cancel(const std::string& why);
  // The sender has not said yet that nothing more of it is written.
  bool awaits_sender() const;

  // Of an offer: it may go packed, and this says where its blocks go then. `is_packed`: it will.
  bool is_offer() const { return is_offer_; }
  OfferWord offer() const { return offer_; }
  bool is_proven() const { return is_proven_; }  // what arrives is compared with what was sent
  Link& link_of_expectation() const { return *link_; }
  void expect(std::shared_ptr<Expectation> expectation);

  // The pull that a publication is for: of these tensors of that cache of the peer. `unclaim`: it was
  // refused.
  void claim(std::shared_ptr<PullRound> pull, int64_t cache, int64_t first_tensor, int64_t tensors,
             const char* asked);
  void unclaim();

  // Watchdog; true when both sides are done with the slot and the link may forget the ticket.
  bool tick(const Tick& tick, SentWord sent, bool link_is_alive);
  void clock_gap(Clock::duration gap);

 private:
  void fail(const Tick& tick, int64_t code, const std::string& why,
            TakenWord::State told = TakenWord::kRevoked);
  void look_at_proof(const Tick& tick, SentWord sent, bool link_is_alive);
  void look_at_expectation(const Tick& tick, SentWord sent);
  bool may_be_written() const;
  void write_flags(const Tick& tick, uint64_t value);
  bool waits_have_passed(bool flags_are_set) const;
  std::optional<std::pair<int64_t, std::string>> failure_of_waits() const;
  void require_free(const char* asked) const;
  std::string name() const;  // for messages
  const char* how_it_ended() const;

  const std::shared_ptr<Link> link_;  // which forgets us when both sides are done
  const SlotUse use_;
  const int64_t first_layer_;
  const int64_t last_layer_;
  const bool is_publication_;
  const PublishedWord published_;
  const bool is_offer_;
  const bool is_proven_;
  const OfferWord offer_;

  mutable std::mutex mutex_;
  bool is_bound_ = false;
  bool is_discarded_ = false;
  std::shared_ptr<WaitRound> waits_;
  std::shared_ptr<PullRound> pull_;  // in place of waits, status and deadline
  std::shared_ptr<Expectation> expectation_;
  std::shared_ptr<ProvenPush> proven_;  // of one that goes direct
  std::shared_ptr<Status> status_;
  Clock::time_point deadline_{};
  std::chrono::milliseconds timeout_{0};
  bool has_ended_ = false;
  int64_t code_ = 0;
  std::string why_;
  bool must_hear_from_sender_ = false;  // that nothing more of it is written
  bool sender_is_done_ = false;
  std::optional<std::string> cancelled_;
  bool is_poisoned_ = false;
  bool is_released_ = false;  // nobody waits for its flags any more, nor may
  bool is_zeroed_ = false;
};

}  // namespace datadist
