// The half of a transport that is the same wherever `map` gives an address that streams can copy to.
#pragma once

#include "acl/peer_words.h"
#include "acl/queue.h"
#include "transport/transport.h"

namespace datadist {

class StreamCopies : public Transport {
 public:
  aclError copy(void* dst, const void* src, size_t bytes, aclrtStream stream) override {
    return acl::queue_copy(dst, src, bytes, stream);
  }

  aclError copy_rows(const Rows& rows, aclrtStream stream) override {
    return acl::queue_copy_rows(rows.dst, rows.dst_pitch, rows.src, rows.src_pitch, rows.width, rows.height,
                                stream);
  }

  aclError write_word(void* remote_word, uint64_t value, void* local_word, aclrtStream stream) override {
    return words_.write(remote_word, value, local_word, stream);
  }

 private:
  acl::PeerWords words_;
};

}  // namespace datadist
