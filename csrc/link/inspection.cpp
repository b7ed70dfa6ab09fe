#include "link/inspection.h"

#include <utility>

#include "error.h"
#include "link/engine.h"

namespace datadist {
Inspection::Lent Inspection::prepared(Link& link) {
  Lent staging(link.borrow_staging(), GiveBack{&link});
  staging->prepare(needs_of_adding(Reach::kDevice), link.engine().device(), *link.options().staging);
  return staging;
}

Inspection::Inspection(std::shared_ptr<Link> link, uint32_t slot)
    : link_(std::move(link)),
      slot_(slot),
      copies_(HostCopies::make([engine = link_->engine().weak_from_this()] {
        if (const auto found = engine.lock()) found->wake();
      })),
      staging_(prepared(*link_)),
      words_(link_->staging().take_ids(kProofWords)),
      confirmed_(link_->engine().words().take()),
      adding_(staging_.get(), copies_.get()) {
  link_->transfer_began();  // which uses buffers of the link
}

Inspection::~Inspection() {
  copies_->close();
  link_->engine().words().give_back(confirmed_);
  link_->staging().give_back_ids(std::move(words_));
  staging_.reset();
  link_->transfer_retired();
}

bool Inspection::next_of_verdict(int64_t layer, Step* step) {
  const auto word = static_cast<size_t>(layer);
  switch (at_) {
    case At::kSum:
      at_ = At::kCheck;
      *step = {Step::kToHost, words_->ids() + word, link_->proofs().own(slot_) + word * sizeof(uint64_t),
               sizeof(uint64_t)};
      return true;
    case At::kCheck:
      at_ = At::kMark;
      *step = copies_->check_sum(reinterpret_cast<const uint64_t*>(words_->ids() + word), layer);
      return true;
    case At::kMark:
      at_ = At::kConfirmed;
      *step = copies_->mark();
      return true;
    case At::kConfirmed:
      at_ = At::kEnd;
      *step = {Step::kWait, confirmed_.address, nullptr, ++marks_};
      return true;
    case At::kEnd:
      break;
  }
  at_ = At::kSum;
  return false;
}

std::optional<std::string> Inspection::look(const Tick& tick) {
  const size_t passed = copies_->passed_marks();
  if (auto failure = copies_->failure()) return failure;
  if (passed > passed_marks_) tick.write(confirmed_, passed);
  passed_marks_ = passed;
  return std::nullopt;
}

}  // namespace datadist
