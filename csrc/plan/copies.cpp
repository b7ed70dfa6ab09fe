#include "plan/copies.h"

namespace datadist {
namespace {

// Up to so many pieces both orders are tried out, at some nanoseconds a piece; a copy costs microseconds.
constexpr size_t kTriedPieces = 256;

}  // namespace

void Copies::begin(const TensorPair* tensors, size_t count, const Run* runs, size_t num_runs,
                   const Shape& shape) {
  tensors_ = tensors;
  num_tensors_ = count;
  runs_ = runs;
  num_runs_ = num_runs;
  shape_ = shape;
  restart(choose());
}

bool Copies::next(Rows* copy) {
  Piece piece;
  while (advance(&piece)) {
    if (merger_.add(piece, copy)) return true;
  }
  return merger_.flush(copy);
}

Copies::Order Copies::choose() const {
  if (num_runs_ <= 1 || num_tensors_ <= 1) return Order::kByTensor;
  const size_t groups = groups_of_tensors();
  if (groups == num_tensors_) return Order::kByTensor;
  if (num_runs_ * num_tensors_ <= kTriedPieces)
    return count(Order::kByRun) < count(Order::kByTensor) ? Order::kByRun : Order::kByTensor;
  // Each tensor makes as many copies as the second one adds to the first: the runs are the same.
  Copies some = *this;
  some.num_tensors_ = 1;
  const size_t first = some.count(Order::kByTensor);
  some.num_tensors_ = 2;
  const size_t added = some.count(Order::kByTensor) - first;
  return num_runs_ * groups < first + added * (num_tensors_ - 1) ? Order::kByRun : Order::kByTensor;
}

// How many copies the same run takes in all tensors.
size_t Copies::groups_of_tensors() const {
  Copies one = *this;
  one.num_runs_ = 1;
  return one.count(Order::kByTensor);
}

size_t Copies::count(Order order) const {
  Copies tried = *this;
  tried.restart(order);
  size_t copies = 0;
  for (Rows rows; tried.next(&rows);) ++copies;
  return copies;
}

void Copies::restart(Order order) {
  order_ = order;
  tensor_ = run_ = 0;
  merger_ = {};
}

bool Copies::advance(Piece* piece) {
  if (tensor_ >= num_tensors_ || run_ >= num_runs_) return false;
  const TensorPair& tensor = tensors_[tensor_];
  const Span span = span_of(shape_, runs_[run_], tensor.src_stride, tensor.dst_stride, tensor.local_stride);
  // Without a slab to share, a tensor is one of its own.
  *piece = {tensor.dst + span.dst, tensor.src + span.src, static_cast<size_t>(span.bytes),
            tensor.dst_slab != 0 ? tensor.dst_slab : reinterpret_cast<uintptr_t>(tensor.dst),
            tensor.src_slab != 0 ? tensor.src_slab : reinterpret_cast<uintptr_t>(tensor.src)};
  size_t& inner = order_ == Order::kByTensor ? run_ : tensor_;
  size_t& outer = order_ == Order::kByTensor ? tensor_ : run_;
  if (++inner == (order_ == Order::kByTensor ? num_runs_ : num_tensors_)) {
    inner = 0;
    ++outer;
  }
  return true;
}

}  // namespace datadist
