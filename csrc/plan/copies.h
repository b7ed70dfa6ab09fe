// Runs of blocks in many tensors -> as few copies as the memory's layout allows. Pure arithmetic.
#pragma once

#include <cstdint>

#include "plan/plan.h"
#include "plan/rows.h"
#include "plan/span.h"

namespace datadist {

// One tensor's two ends. A slab is memory that the runtime knows as one piece; 0: nothing is known of it.
struct TensorPair {
  char* dst = nullptr;
  char* src = nullptr;
  int64_t dst_stride = 0;  // bytes of a block or an entry
  int64_t src_stride = 0;
  int64_t local_stride = 0;
  uintptr_t dst_slab = 0;
  uintptr_t src_slab = 0;
};

// The copies of some tensors, one at a time, so that 100 000 blocks need no list of them. A run that lies in
// all tensors of a slab may be one copy over the tensors, or the runs of one tensor may be; the order of the
// pieces decides, and of each slab the one that makes fewer copies is taken.
class Copies {
 public:
  // Brings tensors of one slab together, in the order of their addresses. What is pointed to stays where it
  // is until `next` returned false.
  void begin(TensorPair* tensors, size_t count, const Run* runs, size_t num_runs, const Shape& shape);
  bool next(Rows* copy);

 private:
  enum class Order : uint8_t { kByTensor, kByRun };

  // Goes on with the next tensors that share their slabs, or with one that shares none.
  void begin_group();
  Order choose() const;
  // How many copies the group's first runs take in its first tensors.
  size_t count(size_t tensors, size_t runs, Order order) const;
  bool advance(Piece* piece);

  TensorPair* tensors_ = nullptr;
  size_t num_tensors_ = 0;
  const Run* runs_ = nullptr;
  size_t num_runs_ = 0;
  Shape shape_;
  Order order_ = Order::kByTensor;
  size_t first_ = 0;  // of the group
  size_t end_ = 0;
  size_t tensor_ = 0;  // of the next piece
  size_t run_ = 0;
  RowMerger merger_;
};

}  // namespace datadist
