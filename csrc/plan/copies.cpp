#include "plan/copies.h"

#include <algorithm>
#include <tuple>

namespace datadist {
namespace {

// Up to so many pieces both orders are tried out, at some nanoseconds a piece; a copy costs microseconds.
constexpr size_t kTriedPieces = 256;

bool share_slabs(const TensorPair& a, const TensorPair& b) {
  return a.dst_slab == b.dst_slab && a.src_slab == b.src_slab && a.dst_slab != 0 && a.src_slab != 0;
}

}  // namespace

void Copies::begin(TensorPair* tensors, size_t count, const Run* runs, size_t num_runs, const Shape& shape) {
  tensors_ = tensors;
  num_tensors_ = count;
  runs_ = runs;
  num_runs_ = num_runs;
  shape_ = shape;
  merger_ = {};
  const auto is_before = [](const TensorPair& a, const TensorPair& b) {
    return std::tie(a.dst_slab, a.src_slab, a.src) < std::tie(b.dst_slab, b.src_slab, b.src);
  };
  if (!std::is_sorted(tensors, tensors + count, is_before)) std::sort(tensors, tensors + count, is_before);
  end_ = 0;
  begin_group();
}

bool Copies::next(Rows* copy) {
  Piece piece;
  while (advance(&piece)) {
    if (merger_.add(piece, copy)) return true;
  }
  return merger_.flush(copy);
}

void Copies::begin_group() {
  first_ = tensor_ = end_;
  run_ = 0;
  if (end_ == num_tensors_) return;
  do ++end_;
  while (end_ < num_tensors_ && share_slabs(tensors_[end_ - 1], tensors_[end_]));
  order_ = choose();
}

Copies::Order Copies::choose() const {
  const size_t tensors = end_ - first_;
  if (num_runs_ <= 1 || tensors <= 1) return Order::kByTensor;
  const size_t of_a_run = count(tensors, 1, Order::kByTensor);
  if (of_a_run == tensors) return Order::kByTensor;
  if (num_runs_ * tensors <= kTriedPieces) {
    const bool is_better =
        count(tensors, num_runs_, Order::kByRun) < count(tensors, num_runs_, Order::kByTensor);
    return is_better ? Order::kByRun : Order::kByTensor;
  }
  // Each tensor makes as many copies as the second one adds to the first: the runs are the same.
  const size_t first = count(1, num_runs_, Order::kByTensor);
  const size_t added = count(2, num_runs_, Order::kByTensor) - first;
  return num_runs_ * of_a_run < first + added * (tensors - 1) ? Order::kByRun : Order::kByTensor;
}

size_t Copies::count(size_t tensors, size_t runs, Order order) const {
  Copies tried;
  tried.tensors_ = tensors_ + first_;
  tried.num_tensors_ = tried.end_ = tensors;
  tried.runs_ = runs_;
  tried.num_runs_ = runs;
  tried.shape_ = shape_;
  tried.order_ = order;
  size_t copies = 0;
  for (Rows rows; tried.next(&rows);) ++copies;
  return copies;
}

bool Copies::advance(Piece* piece) {
  if (tensor_ == num_tensors_ || num_runs_ == 0) return false;
  const TensorPair& tensor = tensors_[tensor_];
  const Span span = span_of(shape_, runs_[run_], tensor.src_stride, tensor.dst_stride, tensor.local_stride);
  // Without a slab to share, a tensor is one of its own.
  *piece = {tensor.dst + span.dst, tensor.src + span.src, static_cast<size_t>(span.bytes),
            tensor.dst_slab != 0 ? tensor.dst_slab : reinterpret_cast<uintptr_t>(tensor.dst),
            tensor.src_slab != 0 ? tensor.src_slab : reinterpret_cast<uintptr_t>(tensor.src)};
  if (order_ == Order::kByTensor) {
    if (++run_ < num_runs_) return true;
    run_ = 0;
    if (++tensor_ == end_) begin_group();
  } else {
    if (++tensor_ < end_) return true;
    tensor_ = first_;
    if (++run_ == num_runs_) begin_group();
  }
  return true;
}

}  // namespace datadist
