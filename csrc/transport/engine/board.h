// Where the threads that feed streams and the thread that talks to the engine meet. What is queued on a
// stream becomes an entry of that stream's channel; a host function on the stream releases entries when the
// stream has come so far; the progress thread takes them from there.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "acl/acl_rt.h"
#include "transport/engine/engine.h"

namespace datadist::engine {

struct Move {
  Way way = Way::kWrite;
  char* local = nullptr;
  uint64_t remote = 0;
  size_t bytes = 0;
  bool local_is_device = true;
  bool remote_is_device = true;
  const char* mapped = nullptr;  // what stands for `remote` here: behind it, too, only in the same memory
};

struct Entry {
  enum Kind : uint8_t { kMoves, kWord, kSettle };
  Kind kind = kMoves;
  std::vector<Move> moves;
  uint64_t remote = 0;  // kWord
  uint64_t value = 0;   // kWord, and kSettle: of the done word
};

struct Board;

struct Channel {
  // Guarded by the board's mutex.
  std::weak_ptr<Board> board;
  int64_t number = 0;          // what the host function on the stream holds
  std::deque<Entry> entries;   // not taken by the progress thread yet
  size_t released = 0;         // of those, from the front
  std::deque<size_t> marks;    // entries that each host function on the stream releases
  size_t unmarked = 0;         // entries behind the last of them
  std::shared_ptr<char> done;  // local word that the stream waits for
  uint64_t settles = 0;        // its last value that a stream waits for
  bool must_settle = false;    // something was queued since
  bool is_dropped = false;
  bool is_quiet = false;  // dropped, and nothing of it is under way any more
  size_t pending = 0;     // entries, wherever they are, that have not ended

  // The progress thread's own.
  std::deque<Entry> work;
  size_t next_move = 0;     // of the first entry
  size_t moved = 0;         // bytes of that move
  size_t under_way = 0;     // parcels
  size_t unannounced = 0;   // of those, which a word must not overtake
  uint64_t quiet_mark = 0;  // 0: not set
};

struct Board {
  std::mutex mutex;
  std::condition_variable changed;
  bool has_news = false;
  bool must_stop = false;
  bool has_failed = false;
  std::string why;
  std::map<aclrtStream, std::shared_ptr<Channel>> channels;
  std::atomic<bool> is_severed{false};
  std::atomic<bool> is_cut_off{false};  // before is_severed

  void tell() {  // with the mutex
    has_news = true;
    changed.notify_one();
  }
};

}  // namespace datadist::engine
