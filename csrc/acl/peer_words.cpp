#include "acl/peer_words.h"

#include <cstdio>

#include "acl/check.h"
#include "acl/queue.h"

namespace datadist::acl {
namespace {

aclError copy_word(void* remote, uint64_t value, void* local, aclrtStream stream) {
  // One stream runs both in order, so the local word is free again for the next.
  const aclError code = queue_write(local, value, stream);
  return code != 0 ? code : queue_copy(remote, local, sizeof value, stream);
}

}  // namespace

aclError PeerWords::write(void* remote, uint64_t value, void* local, aclrtStream stream) {
  if (are_copied_.load(std::memory_order_relaxed)) return copy_word(remote, value, local, stream);
  const aclError code = queue_write(remote, value, stream);
  // What the runtime says of an address whose attributes it does not accept. All else is no matter of the
  // way.
  if (code != 107000 && code != 207000) return code;
  const std::string why = describe("aclrtValueWrite", code);
  if (copy_word(remote, value, local, stream) != 0) return code;
  are_copied_.store(true, std::memory_order_relaxed);
  static std::atomic<bool> told{false};
  if (!told.exchange(true)) {
    std::fprintf(stderr, "torch_llm_datadist: words for peers are copied from now on, since %s\n",
                 why.c_str());
  }
  return 0;
}

}  // namespace datadist::acl
