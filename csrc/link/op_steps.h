// What a layer op queues on its caller's stream, eager or captured.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

#include "acl/acl_rt.h"
#include "link/few.h"
#include "link/transfer.h"

namespace datadist {

// A word of a transfer that an op waits for.
struct Awaited {
  char* word = nullptr;
  uint64_t value = 0;
};

// One layer op's share of the caller's stream, in this order. Empty fields are left out. An op is called for
// each layer of each forward: with as few transfers as a batch has as a rule, nothing of it is on the heap.
struct OpSteps {
  Few<Awaited> awaited;           // wait for these
  char* must_be_taken = nullptr;  // wait until it is 0: the push of an earlier replay
  char* reached = nullptr;        // 1 from here on until `opened` was taken
  char* opened = nullptr;         // wait for 1; 0 again at the end
  const char* status = nullptr;   // copied to the caller's
  const char* failed = nullptr;   // copied in its place when the runtime refused the wait
  char* released = nullptr;       // 1
  Few<Gate> starts;               // 1
  Few<Gate> passed;               // 1: what was awaited is not read any more
  char* mark = nullptr;           // `mark_number`: an op without a gate of the round has passed
  uint64_t mark_number = 0;
  std::shared_ptr<std::atomic<bool>> refused;  // the runtime refused a write, so the gates stay as they are

  // Queues them, with the status copied to `to`. Local memory only, at addresses that stay; what the runtime
  // refuses is told in `refused`.
  void queue(void* to, aclrtStream stream) const;
};

}  // namespace datadist
