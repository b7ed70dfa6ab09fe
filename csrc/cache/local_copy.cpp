#include "cache/local_copy.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "acl/queue.h"
#include "error.h"
#include "messages/messages.h"

namespace datadist {
namespace {

void copy_on_host(void* argument) {
  const std::unique_ptr<LocalCopy> copy(static_cast<LocalCopy*>(argument));
  std::memmove(copy->dst, copy->src, copy->bytes);
}

aclError queue_host_copy(const LocalCopy& copy, aclrtStream stream) {
  auto argument = std::make_unique<LocalCopy>(copy);
  const aclError code = acl::queue_call(&copy_on_host, argument.get(), stream);
  if (code == 0) argument.release();  // the host function frees it
  return code;
}

}  // namespace

int64_t stride_of(const at::Tensor& tensor, const char* name, const char* asked) {
  if (!(tensor.dim() > 0 && tensor.size(0) > 0 && tensor.is_contiguous()))
    refuse(Message::tensor_without_entries,
           {{"asked", asked},
            {"name", name},
            {"value", tensor.dim()},
            {"why", tensor.is_contiguous() ? "" : " and is not contiguous"}});
  return static_cast<int64_t>(tensor.nbytes()) / tensor.size(0);
}

void LocalCopies::add(const at::Tensor& dst, int64_t dst_offset, const at::Tensor& src, int64_t src_offset,
                      int64_t bytes) {
  char* const to = static_cast<char*>(dst.data_ptr()) + dst_offset;
  char* const from = static_cast<char*>(src.data_ptr()) + src_offset;
  if (to == from || bytes == 0) return;
  require_apart(to, from, bytes);
  copies_.push_back({to, from, static_cast<size_t>(bytes), !dst.device().is_cpu(), !src.device().is_cpu()});
}

void LocalCopies::require_apart(const char* dst, const char* src, int64_t bytes) const {
  if (dst + bytes <= src || src + bytes <= dst) return;
  refuse(Message::copy_overlaps, {{"asked", asked_},
                                  {"from", static_cast<const void*>(src)},
                                  {"to", static_cast<const void*>(dst)},
                                  {"value", bytes}});
}

size_t LocalCopies::plan_of(int64_t dst_count, int64_t src_count) {
  for (size_t i = 0; i < plans_.size(); ++i) {
    if (plans_[i].dst_count == dst_count && plans_[i].src_count == src_count) return i;
  }
  lists_.src_count = src_count;
  lists_.dst_count = dst_count;
  plans_.push_back({dst_count, src_count, {}, false});
  Plan& made = plans_.back();
  const auto runs = plan_runs(lists_, asked_);
  made.runs.assign(runs.begin(), runs.end());
  made.overlaps = std::any_of(made.runs.begin(), made.runs.end(), [](const Run& run) {
    const int64_t apart = std::abs(run.dst - run.src);
    return apart != 0 && apart < run.blocks;
  });
  return plans_.size() - 1;
}

void LocalCopies::add_blocks(const at::Tensor& dst, const at::Tensor& src) {
  const int64_t stride = stride_of(src, "the source", asked_);
  const int64_t dst_stride = stride_of(dst, "the destination", asked_);
  if (stride != dst_stride)
    refuse(Message::copy_of_unequal_blocks, {{"asked", asked_}, {"value", stride}, {"found", dst_stride}});
  const size_t plan = plan_of(dst.size(0), src.size(0));
  auto* const to = static_cast<char*>(dst.data_ptr());
  auto* const from = static_cast<char*>(src.data_ptr());
  if (stride == 0 || plans_[plan].runs.empty()) return;
  // A tensor's copies within itself are as far apart, in blocks, as those of any other.
  const bool may_overlap =
      to == from ? plans_[plan].overlaps : to < from + src.nbytes() && from < to + dst.nbytes();
  if (may_overlap) {
    for (const Run& run : plans_[plan].runs) {
      char* const at = to + run.dst * stride;
      if (at != from + run.src * stride) require_apart(at, from + run.src * stride, run.blocks * stride);
    }
  }
  pairs_.push_back(
      {{to, from, static_cast<size_t>(stride), !dst.device().is_cpu(), !src.device().is_cpu()}, plan});
}

aclError queue_local_copies(const LocalCopies& copies, aclrtStream stream) {
  return copies.for_each([stream](const LocalCopy& copy) {
    if (copy.to_device && copy.from_device) return acl::queue_copy(copy.dst, copy.src, copy.bytes, stream);
    if (copy.to_device) return acl::queue_to_device(copy.dst, copy.src, copy.bytes, stream);
    if (copy.from_device) return acl::queue_to_host(copy.dst, copy.src, copy.bytes, stream);
    return queue_host_copy(copy, stream);
  });
}

void make_local_copies(const LocalCopies& copies) {
  copies.for_each([](const LocalCopy& copy) {
    std::memmove(copy.dst, copy.src, copy.bytes);
    return aclError{0};
  });
}

}  // namespace datadist
