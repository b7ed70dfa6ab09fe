#pragma once

#include <atomic>
#include <mutex>
#include <string>

#include "emulator/acl_headers.h"
#include "emulator/copy.h"

namespace emu {

class Stream;

// Task failures that a test asked for. (Call failures hang on the entry table, see entry.h.)
class Faults {
 public:
  // `direction` -1: of any; `stream` nullptr: on any.
  void fail_copy(aclrtStream stream, int direction, int nth, aclError code);
  // Called by each copy task before it moves anything.
  aclError next_copy(const Stream& stream, Direction direction, std::string& why) {
    return armed_.load(std::memory_order_relaxed) ? check(stream, direction, why) : ACL_SUCCESS;
  }

 private:
  aclError check(const Stream& stream, Direction direction, std::string& why);

  std::atomic<bool> armed_{false};
  std::mutex mutex_;
  aclrtStream stream_ = nullptr;
  int direction_ = -1;
  int until_ = 0;
  aclError code_ = ACL_SUCCESS;
};

}  // namespace emu
