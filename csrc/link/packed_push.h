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
    kMark,
    kConfirmed,
    kFlag,
    kRangeEnd,
    kLayerEnd,
    kSettle,
    kDone,
    kEnd
  };
  void begin_layer();
  bool next_comparison(Step* step);
  char* chunk_in(char* window) const;
  int64_t tensor_of(const PackedPiece& piece) const;

  const std::shared_ptr<Transfer> transfer_;
  LinkStaging::Window window_;
  const IdBuffer* ids_ = nullptr;
  Verification verification_;
  Packing packing_;
  Packing compared_;  // the chunk once more
  PackedPiece left_;  // of what is compared
  At at_ = At::kIds;
  int64_t layer_ = 0;  // of the range
  uint64_t chunk_ = 0;
};

}  // namespace datadist
