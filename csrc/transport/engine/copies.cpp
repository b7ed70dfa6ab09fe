#include "transport/engine/copies.h"

#include <utility>

#include "acl/check.h"
#include "acl/queue.h"
#include "error.h"

namespace datadist::engine {
namespace {

// Asked at each pass: the text is made for who reads it.
void require_done(aclError code) {
  if (code != 0) throw Error(kFailed, acl::describe("a copy between the device and its buffers", code));
}

}  // namespace

// A context that was made is the calling thread's current one, as streams need it.
Copies::Copies(int device) : context_(device), out_(context_), in_(context_) {}

void Copies::to_host(char* host, const char* device, size_t bytes) {
  DATADIST_ACL(acl::queue_to_host(host, device, bytes, out_.stream.get()));
}

void Copies::to_device(char* device, const char* host, size_t bytes) {
  DATADIST_ACL(acl::queue_to_device(device, host, bytes, in_.stream.get()));
}

void Copies::write_word(void* word, uint64_t value) {
  DATADIST_ACL(acl::queue_write(word, value, in_.stream.get()));
}

void Copies::look() {
  out_.look();
  in_.look();
}

void Copies::require_well() const {
  for (const auto* direction : {&out_, &in_}) require_done(direction->stream.query());
}

uint64_t Copies::Direction::mark() {
  std::unique_ptr<acl::Event> event;
  if (spare.empty()) {
    event = std::make_unique<acl::Event>();
  } else {
    event = std::move(spare.back());
    spare.pop_back();
  }
  DATADIST_ACL(event->record(stream));
  pending.push_back(std::move(event));
  return passed + pending.size();
}

void Copies::Direction::look() {
  while (!pending.empty()) {
    bool is_passed = false;
    require_done(pending.front()->query(&is_passed));
    if (!is_passed) return;
    ++passed;
    spare.push_back(std::move(pending.front()));
    pending.pop_front();
  }
}

}  // namespace datadist::engine
