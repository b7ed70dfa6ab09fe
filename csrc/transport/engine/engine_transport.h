// The transport of a link whose peer only an engine reaches.
//
//   link's stream      start gate · [host function: what is queued may leave] · … · wait for a local word
//   progress thread    bytes of ours -> engine -> the peer's memory, or its chunks and a message; then the
//   word
//
// Stream order is kept from outside: nothing leaves before the stream came to the host function, and the
// stream passes `settle` only when the engine, or the peer, said that all is in place. If it fails the word
// is never written, and the link's death gives the stream up: nobody takes bytes for arrived that are not.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "transport/engine/board.h"
#include "transport/engine/placeholders.h"
#include "transport/transport.h"

namespace datadist::engine {

// What a message of the peer may name.
enum class Named : uint8_t {
  kWord,     // a word of the control page
  kWritten,  // memory that it writes
  kRead,     // memory that it reads
};

struct Settings {
  std::string engine;  // name of its kind
  std::string peer;    // for messages
  std::string listen_ip;
  std::map<std::string, std::string> options;  // the engine's own
  int device = 0;
  bool is_peer_on_this_host = true;
  bool is_peer_in_this_super_pod = true;
  size_t chunk_bytes = 1 << 20;
  size_t chunks = 8;
  // A word of device memory, 0, until the last owner is gone.
  std::function<std::shared_ptr<char>()> take_word;
  // nullopt: not memory that this peer may touch in that way.
  std::function<std::optional<Reach>(Named, const char*, size_t)> named_by_peer;
  // Of caches of ours; nullopt for other memory, which is on the device.
  std::function<std::optional<Reach>(const char*, size_t)> reach_of_own;
  std::function<void()> wake;  // the watchdog, when something failed
};

// Throws LLM_FEATURE_NOT_ENABLED for an engine that is not here, naming what is missing.
std::unique_ptr<Transport> make_transport(Settings settings);

}  // namespace datadist::engine
