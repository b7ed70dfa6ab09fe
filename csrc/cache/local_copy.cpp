#include "cache/local_copy.h"

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
  if (!(to + bytes <= from || from + bytes <= to))
    refuse(Message::copy_overlaps, {{"asked", asked_},
                                    {"from", static_cast<void*>(from)},
                                    {"to", static_cast<void*>(to)},
                                    {"value", bytes}});
  copies_.push_back({to, from, static_cast<size_t>(bytes), !dst.device().is_cpu(), !src.device().is_cpu()});
}

aclError queue_local_copies(const std::vector<LocalCopy>& copies, aclrtStream stream) {
  for (const LocalCopy& copy : copies) {
    aclError code = 0;
    if (copy.to_device && copy.from_device) {
      code = acl::queue_copy(copy.dst, copy.src, copy.bytes, stream);
    } else if (copy.to_device) {
      code = acl::queue_to_device(copy.dst, copy.src, copy.bytes, stream);
    } else if (copy.from_device) {
      code = acl::queue_to_host(copy.dst, copy.src, copy.bytes, stream);
    } else {
      code = queue_host_copy(copy, stream);
    }
    if (code != 0) return code;
  }
  return 0;
}

void make_local_copies(const std::vector<LocalCopy>& copies) {
  for (const LocalCopy& copy : copies) std::memmove(copy.dst, copy.src, copy.bytes);
}

}  // namespace datadist
