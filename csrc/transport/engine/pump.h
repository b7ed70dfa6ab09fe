// The progress thread of one end of a link: takes what streams have released, cuts it into parcels, and sees
// each through. It alone talks to the engine once the link is connected.
//
//   push, staged   credit + chunk · D2H into it · post to the peer's chunk · message · peer: H2D · credit
//   back pull, staged   chunk · message · peer: D2H, post into it · message · H2D direct         post
//
// Several parcels are under way at a time, as many as there are chunks. A message is processed in the order
// in which it came: copies first, then the words that tell of them, on one stream.
#pragma once

#include <array>
#include <deque>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <thread>

#include "transport/engine/board.h"
#include "transport/engine/copies.h"
#include "transport/engine/engine_mutex.h"
#include "transport/engine/engine_transport.h"
#include "transport/engine/messages.h"

namespace datadist::engine {

inline uint32_t take_last(std::vector<uint32_t>* numbers) {
  const uint32_t number = numbers->back();
  numbers->pop_back();
  return number;
}

class Pump {
 public:
  // `chunks`: registered pinned memory: those for the peer's pushes, for own pulls, and for what goes out.
  Pump(Settings settings, std::shared_ptr<Board> board, std::shared_ptr<Engine> engine,
       EngineMutex* engine_mutex, char* chunks, Address peer);
  ~Pump();

 private:
  struct Parcel {
    enum Kind : uint8_t { kPush, kPull, kServe, kDirect, kDirectWord };
    enum State : uint8_t { kGathering, kPosted, kAwaited, kScattering };
    Kind kind = kPush;
    State state = kGathering;
    std::shared_ptr<Channel> channel;  // none: kServe
    std::vector<Move> moves;
    uint32_t chunk = 0;         // of ours
    uint32_t remote_chunk = 0;  // of the peer's
    int64_t request = 0;
    uint64_t copied_at = 0;  // mark of the copies
    size_t bytes = 0;
    bool counts_as_unannounced = true;
  };
  struct Scattered {
    uint64_t at;
    uint32_t chunk;
  };

  void run();
  void loop();
  bool pass();
  bool take_news();
  void let_channels_go();
  bool take_messages();
  bool confirm_scattered();
  bool advance();
  bool advance(Parcel& parcel, bool* has_ended);
  bool feed(const std::shared_ptr<Channel>& channel);
  bool start_parcel(const std::shared_ptr<Channel>& channel);
  bool serve();
  bool start_direct_word(const std::shared_ptr<Channel>& channel, const Entry& entry);
  void look_at_quiet(const std::shared_ptr<Channel>& channel);
  void gather(Parcel& parcel, char* chunk);
  void scatter_pull(Parcel& parcel);
  bool has_request_left(bool direct) const;
  bool post_gathered();
  void post(Parcel& parcel);
  void begin(Parcel parcel);
  void end(Parcel& parcel);
  void announced(Parcel& parcel);
  void end_entry(Channel& channel);
  size_t take_moves(Channel& channel, size_t most_bytes, size_t most_pieces, bool direct, Way way,
                    std::vector<Move>* moves) const;
  bool is_direct(const Move& move) const;

  void on_words(const Message& message);
  void on_scatter(const Message& message);
  void on_taken(const Message& message);
  void on_fetch(Message message);
  void on_filled(const Message& message);
  void on_reach(const Message& message);
  Reach require_named(Named what, const Range& range) const;
  void say(Message message);
  void send_all();

  char* pushed_chunk(uint32_t chunk) const { return chunks_ + chunk * settings_.chunk_bytes; }
  char* pulled_chunk(uint32_t chunk) const {
    return pushed_chunk(static_cast<uint32_t>(settings_.chunks) + chunk);
  }
  char* own_chunk(uint32_t chunk) const {
    return pushed_chunk(2 * static_cast<uint32_t>(settings_.chunks) + chunk);
  }

  const Settings settings_;
  const std::shared_ptr<Board> board_;
  std::shared_ptr<Engine> engine_;
  EngineMutex* const engine_mutex_;
  const Limits limits_;
  char* const chunks_;
  const Address peer_;
  const size_t most_ranges_;
  const size_t direct_bytes_;

  std::unique_ptr<Copies> copies_;  // of the thread
  struct Leaving {
    uint64_t at;
    std::shared_ptr<Channel> channel;
  };

  using Known = std::pair<aclrtStream, std::shared_ptr<Channel>>;
  std::deque<Known> channels_;  // the first one is served first
  // Dropped ones, as of the look at the board that also took the rest of their work away.
  std::set<const Channel*> given_up_;
  bool has_given_up(const std::shared_ptr<Channel>& channel) const {
    return given_up_.contains(channel.get());
  }
  std::deque<Leaving> leaving_;  // until the last write to their words is done
  std::list<Parcel> parcels_;
  std::deque<Message> to_serve_;
  std::set<uint32_t> serving_;
  std::deque<Scattered> scattered_;
  std::set<uint32_t> busy_pushed_;  // own chunks that are being scattered
  std::vector<uint32_t> free_out_;
  std::vector<uint32_t> free_pulled_;
  std::vector<uint32_t> credits_;
  std::vector<uint32_t> free_words_;
  std::deque<Message> outgoing_;
  size_t requests_ = 0;        // under way
  size_t direct_ = 0;          // parcels that the peer is told nothing of
  bool peer_reaches_ = false;  // it has such parcels: its engine may need this one to go on, so look often
  std::thread thread_;
};

// Words that are written by requests of their own lie behind the chunks.
constexpr size_t kDirectWords = 64;

}  // namespace datadist::engine
