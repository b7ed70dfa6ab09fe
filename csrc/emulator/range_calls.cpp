
#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "emulator/context.h"
#include "emulator/error.h"
#include "emulator/ranges.h"
#include "emulator/stream.h"
#include "emulator/thread.h"

namespace emu {
namespace {

struct NamedRange {
  std::string message;
  std::weak_ptr<Stream> on;  // empty: the host
  bool is_on_host = false;
  uint64_t begin_ns = 0;  // written and read on the stream
};

std::mutex mutex;
std::map<uint64_t, std::shared_ptr<NamedRange>>& open_ranges() {
  static auto* ranges = new std::map<uint64_t, std::shared_ptr<NamedRange>>;
  return *ranges;
}
uint64_t next_id = 1;

}  // namespace
}  // namespace emu

using namespace emu;

uint64_t emuRangeStart(const char* message, void* stream) {
  RangeKeeper* const keeper = range_keeper.load(std::memory_order_acquire);
  if (keeper == nullptr) return 0;
  auto range = std::make_shared<NamedRange>();
  range->message = message;
  if (stream == nullptr) {
    range->is_on_host = true;
    range->begin_ns = keeper->now();
  } else {
    Thread& self = Thread::self();
    try {
      if (self.context == nullptr) return 0;
      const auto on = self.context->stream(stream);
      range->on = on;
      on->submit(make_task("mstxRangeStartA", [range, keeper](Stream&) -> aclError {
        range->begin_ns = keeper->now();
        return ACL_SUCCESS;
      }));
    } catch (const Error&) {
      return 0;
    }
  }
  const std::lock_guard lock(mutex);
  open_ranges().emplace(next_id, std::move(range));
  return next_id++;
}

void emuRangeEnd(uint64_t id) {
  std::shared_ptr<NamedRange> range;
  {
    const std::lock_guard lock(mutex);
    const auto found = open_ranges().find(id);
    if (found == open_ranges().end()) return;
    range = std::move(found->second);
    open_ranges().erase(found);
  }
  RangeKeeper* const keeper = range_keeper.load(std::memory_order_acquire);
  if (range->is_on_host) return keeper->ranged(nullptr, range->message, range->begin_ns);
  const auto on = range->on.lock();
  if (on == nullptr) return;
  try {
    on->submit(make_task("mstxRangeEnd", [range, keeper](Stream& stream) -> aclError {
      keeper->ranged(&stream, range->message, range->begin_ns);
      return ACL_SUCCESS;
    }));
  } catch (const Error&) {
    return;  // the stream is about to go
  }
}
