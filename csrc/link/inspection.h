// The receiver's look at what arrived with a proven ticket (proof.h), before anybody may use it: what a
// program on a stream of its own queues behind a layer's arrival, and what the watchdog makes of it. A host
// function cannot stop its stream, so the stream waits there until the watchdog saw that none failed.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "link/link.h"
#include "link/proof.h"
#include "link/tick.h"

namespace datadist {

class Inspection {
 public:
  // Takes buffers and words, for which it may have to wait: on a feeding thread. LLM_LINK_BUSY when
  // staging_limit leaves none.
  Inspection(std::shared_ptr<Link> link, uint32_t slot);
  // No stream runs anything of it any more.
  ~Inspection();
  Inspection(const Inspection&) = delete;
  Inspection& operator=(const Inspection&) = delete;

  // --- the program
  // What arrived of a layer, piece by piece, in the order of the sender's sum.
  void begin(const Place& arrived, size_t bytes) { adding_.begin(arrived, bytes); }
  bool next_of_piece(Step* step) { return adding_.next(step); }
  // Behind the pieces of the ticket's layer of that number; false when there is none left, once per layer.
  bool next_of_verdict(int64_t layer, Step* step);
  int64_t* list() const { return words_->ids(); }  // where the proof is read to

  // --- the watchdog
  // Lets the stream go on behind what was the same; else what was not.
  std::optional<std::string> look(const Tick& tick);

 private:
  enum class At { kSum, kCheck, kMark, kConfirmed, kEnd };
  struct GiveBack {
    Link* link;
    void operator()(Staging* staging) const { link->give_back_staging(staging); }
  };
  using Lent = std::unique_ptr<Staging, GiveBack>;
  static Lent prepared(Link& link);

  const std::shared_ptr<Link> link_;
  const uint32_t slot_;
  const std::shared_ptr<HostCopies> copies_;
  Lent staging_;
  std::unique_ptr<IdBuffer> words_;
  const Word confirmed_;
  Adding adding_;
  At at_ = At::kSum;
  uint64_t marks_ = 0;
  size_t passed_marks_ = 0;  // watchdog
};

}  // namespace datadist
