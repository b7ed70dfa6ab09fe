// The steps of a push that travels packed, and what decides that it does.
//
//   sender's stream    start gate · credit · gather… · one copy · count of chunks at the receiver
//   receiver's stream  count of chunks · scatter… · the layer's flag · credit back
//
// per chunk; a layer has one chunk, or as many as it needs. The sender touches staging only: no address of a
// block leaves the receiver.
#pragma once

#include <memory>
#include <optional>

#include "link/lane.h"
#include "link/link.h"
#include "link/proof.h"
#include "link/transfer.h"
#include "link/verification.h"
#include "plan/packing.h"

namespace datadist {

struct TransferRequest;

// Whether this push may go packed, or must (`wanted`), and what it needs for that. Throws when it must and
// cannot.
void plan_packing(Link& link, const TransferRequest& request, std::optional<bool> wanted, TransferPlan* plan);

class PackedProgram : public Program {
 public:
  explicit PackedProgram(std::shared_ptr<Transfer> transfer);

  void prepare() override;
  bool next(Step* step) override;
  void ended(uint64_t mark, int64_t code, const std::string& what) override;

 private:
  enum class At {
    kIds,
    kStart,
    kRange,
    kCredit,
    kGather,
    kVerify,
    kAdd,
    kSum,
    kSendSum,
    kMark,
    kConfirmed,
    kFlag,
    kRangeEnd,
    kLayerEnd,
    kSettle,
    kFound,
    kDone,
    kEnd
  };
  void begin_layer();
  bool next_comparison(Step* step);
  bool next_addition(Step* step);
  // Behind the ids: one after the other, since the stream sends each before it makes the next.
  uint64_t* sum() const { return reinterpret_cast<uint64_t*>(ids_->ids() + ids_behind()); }
  char* sum_on_device() const { return ids_->device.address + ids_behind() * sizeof(int64_t); }
  size_t ids_behind() const { return transfer_->plan_.packed_src.size(); }
  char* chunk_in(char* window) const;
  int64_t tensor_of(const PackedPiece& piece) const;

  const std::shared_ptr<Transfer> transfer_;
  LinkStaging::Window window_;
  const IdBuffer* ids_ = nullptr;
  Verification verification_;
  Adding adding_;
  PackedPiece added_;  // tensor and place in the list of the next block to add up
  Packing packing_;
  Packing compared_;  // the chunk once more
  PackedPiece left_;  // of what is compared
  At at_ = At::kIds;
  int64_t layer_ = 0;  // of the range
  uint64_t chunk_ = 0;
};

}  // namespace datadist
