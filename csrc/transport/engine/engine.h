// What a transfer engine must do for a link: move bytes between memory that both ends registered, and, where
// it can, carry short messages. Everything else is made of that by the files around this one: stream order,
// staging of memory that the engine does not reach, words, credits, deadlines, the end.
//
// Contract. One engine object serves one end of one link. All calls are made by one thread at a time, none
// holds the GIL, and none waits for the peer: what takes time is posted and polled. Nothing an engine says is
// trusted with a deadline: a peer that froze is noticed by the link, not here.
//
//   add_memory    Registers memory of this process. What it returns is sent to the peer with the announcement
//                 of that memory, whose engine is given it by `learn_memory` before it posts to any of it;
//                 empty where the engine needs no such thing. A range is registered once. Throws.
//   remove_memory Nothing of it is in flight any more.
//   address       What the peer's engine needs for `connect`: binary, at most 4096 bytes. After the memory
//                 that is registered at the start.
//   connect       Once, before everything below. Throws with the reason.
//   post          Queues pieces as one request: all from here to the peer, or all back. At most
//                 `limits().pieces` of them. They may be carried out in any order. Throws when it is refused.
//   poll          Of a request: still under way, done (the bytes are at the other end, readable there by
//                 whoever is told after this), or failed. A request that is not under way is forgotten with
//                 this answer. `poll` is also what makes engines go on that have no thread of their own.
//   cancel        True once nothing of the request touches memory at either end any more; it is forgotten
//                 then. False: not yet, ask again. One that cannot be cancelled becomes true as it ends.
//   send          A message of at most `limits().message_bytes`. Messages arrive in the order in which they
//                 were sent, after the bytes of every request that was done before; they arrive whole, once.
//                 Throws when the peer is known to be gone.
//   receive       The next message, if there is one; like `poll` it makes the engine go on.
//   can_take_back Whether `take_back` can succeed, whatever the peer does.
//   take_back     The last call. True when every way of the peer's into memory of ours is known to have
//   ended:
//                 nothing that it has posted, or will post, writes or reads any. False when that is not
//                 known.
//   destructor    Nothing is read or written afterwards, here or, from here, at the peer. It may not wait for
//                 a peer that does not answer.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace datadist::engine {

struct Limits {
  bool reaches_device = false;  // registers device memory. Else that goes through pinned buffers, by messages
  bool has_messages = false;    // else words go as requests of their own, which needs `reaches_device`
  size_t pieces = 1024;         // of one request
  size_t requests = 4;          // under way at one time
  size_t message_bytes = 32768;
};

struct Piece {
  char* local = nullptr;
  uint64_t remote = 0;  // the address as the peer's process knows it
  size_t bytes = 0;
};

enum class Way : uint8_t { kWrite, kRead };

struct Progress {
  enum State : uint8_t { kUnderWay, kDone, kFailed };
  State state = kUnderWay;
  std::string why;  // kFailed
};

class Engine {
 public:
  virtual ~Engine() = default;
  virtual Limits limits() const = 0;

  virtual std::string add_memory(char* address, size_t bytes, bool is_device) = 0;
  virtual void remove_memory(char* address) = 0;
  virtual void learn_memory(const std::string& said) = 0;
  virtual std::string address() = 0;
  virtual void connect(const std::string& peer_address) = 0;

  virtual int64_t post(Way way, const std::vector<Piece>& pieces) = 0;
  virtual Progress poll(int64_t request) = 0;
  virtual bool cancel(int64_t request) = 0;

  virtual void send(const std::string& message) = 0;
  virtual std::optional<std::string> receive() = 0;

  virtual bool can_take_back() const { return false; }
  virtual bool take_back() { return false; }
};

}  // namespace datadist::engine
