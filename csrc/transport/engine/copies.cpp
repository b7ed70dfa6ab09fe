#include "transport/engine/copies.h"

#include "acl/check.h"
#include "acl/queue.h"
#include "error.h"
#include "link/handles.h"

namespace datadist::engine {
namespace {

using Calls = Copies::Calls;

HandleTable<Calls>& open_calls() {
  static auto* table = new HandleTable<Calls>("calls of a transport");
  return *table;
}

void called(void* number, std::atomic<uint64_t> Calls::* counter) {
  const auto calls = open_calls().find(reinterpret_cast<int64_t>(number));
  if (calls == nullptr) return;
  ++((*calls).*counter);
  std::lock_guard lock(calls->board->mutex);
  calls->board->tell();
}

void out_called(void* number) { called(number, &Calls::out); }
void in_called(void* number) { called(number, &Calls::in); }

std::shared_ptr<Calls> make_calls(std::shared_ptr<Board> board) {
  auto calls = std::make_shared<Calls>();
  calls->board = std::move(board);
  return calls;
}

}  // namespace

// A context that was made is the calling thread's current one, as streams need it.
Copies::Copies(int device, std::shared_ptr<Board> board)
    : calls_(make_calls(std::move(board))),
      context_(device),
      out_(context_, acl::OnFailure::kStop),
      in_(context_, acl::OnFailure::kStop),
      number_(open_calls().add(calls_)) {}

Copies::~Copies() { open_calls().remove(number_); }

void Copies::to_host(char* host, const char* device, size_t bytes) {
  DATADIST_ACL(acl::queue_to_host(host, device, bytes, out_.get()));
}

void Copies::to_device(char* device, const char* host, size_t bytes) {
  DATADIST_ACL(acl::queue_to_device(device, host, bytes, in_.get()));
}

void Copies::write_word(void* word, uint64_t value) {
  DATADIST_ACL(acl::queue_write(word, value, in_.get()));
}

uint64_t Copies::mark_out() {
  DATADIST_ACL(acl::queue_call(&out_called, reinterpret_cast<void*>(number_), out_.get()));
  return ++out_queued_;
}

uint64_t Copies::mark_in() {
  DATADIST_ACL(acl::queue_call(&in_called, reinterpret_cast<void*>(number_), in_.get()));
  return ++in_queued_;
}

void Copies::require_well() const {
  for (const auto* stream : {&out_, &in_}) {
    const aclError code = stream->query();
    require(code == 0, kFailed, acl::describe("a copy between the device and its buffers", code));
  }
}

}  // namespace datadist::engine
