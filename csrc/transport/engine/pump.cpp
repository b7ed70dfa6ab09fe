#include "transport/engine/pump.h"

#include <sys/prctl.h>

#include <algorithm>
#include <chrono>
#include <cstring>

#include "acl/queue.h"
#include "error.h"

namespace datadist::engine {
namespace {

using std::chrono::duration_cast;
using std::chrono::microseconds;
using std::chrono::steady_clock;

constexpr size_t kMostDirectBytes = 16 << 20;
constexpr int kEagerPasses = 64;  // without a pause, while something is under way
constexpr auto kShortPause = microseconds(20);
constexpr auto kLongPause = microseconds(1000);
constexpr int kRestsPerPause = 16;  // what comes after a rest waits for a sixteenth of that at most

std::vector<uint32_t> count_down(size_t count) {
  std::vector<uint32_t> numbers;
  for (size_t i = count; i > 0; --i) numbers.push_back(static_cast<uint32_t>(i - 1));
  return numbers;
}

// Of one request. Signs of life wait behind what is under way, of which there are up to three: it may not
// take long on a slow wire. Smaller ones than these leave a fast one idle.
size_t direct_bytes(const Settings& settings) {
  if (settings.chunks == 0) return kMostDirectBytes;
  return std::min(settings.chunks * settings.chunk_bytes / 2, kMostDirectBytes);
}

}  // namespace

Pump::Pump(Settings settings, std::shared_ptr<Board> board, std::shared_ptr<Engine> engine,
           EngineMutex* engine_mutex, char* chunks, Address peer)
    : settings_(std::move(settings)),
      board_(std::move(board)),
      engine_(std::move(engine)),
      engine_mutex_(engine_mutex),
      limits_(engine_->limits()),
      chunks_(chunks),
      peer_(std::move(peer)),
      most_ranges_((limits_.message_bytes - kMessageHead) / kBytesOfARange),
      direct_bytes_(direct_bytes(settings_)),
      free_out_(count_down(settings_.chunks)),
      free_pulled_(count_down(settings_.chunks)),
      credits_(count_down(peer_.chunks)),
      free_words_(count_down(kDirectWords)) {
  thread_ = std::thread([this] { run(); });
}

Pump::~Pump() {
  {
    std::lock_guard lock(board_->mutex);
    board_->must_stop = true;
    board_->tell();
  }
  thread_.join();
}

void Pump::run() {
  prctl(PR_SET_TIMERSLACK, 1000UL);  // pauses are short
  std::string why;
  try {
    acl::ThreadDevice device(settings_.device);
    copies_ = std::make_unique<Copies>(settings_.device);
    try {
      loop();
    } catch (const std::exception& error) {
      why = error.what();
    }
    // First what could still write here, then the engine that could still read or write there.
    copies_.reset();
  } catch (const std::exception& error) {
    why = error.what();
  }
  {
    std::lock_guard engine_lock(*engine_mutex_);
    board_->is_cut_off = engine_->take_back();
    engine_.reset();
  }
  {
    std::lock_guard lock(board_->mutex);
    if (!why.empty()) {
      board_->has_failed = true;
      board_->why = join("the ", settings_.engine, " engine: ", why);
    }
    board_->is_severed = true;
    board_->changed.notify_all();
  }
  settings_.wake();
}

void Pump::loop() {
  int idle = 0;
  auto active_at = steady_clock::now();
  while (true) {
    bool did = false;
    {
      const EngineMutex::AfterOthers lock(*engine_mutex_);
      did = pass();
    }
    idle = did ? 0 : idle + 1;
    if (!did && !copies_->are_all_past()) copies_->require_well();
    std::unique_lock lock(board_->mutex);
    if (board_->must_stop) return;
    const bool moves_bytes = !parcels_.empty() || !scattered_.empty();
    const bool is_under_way = moves_bytes || !copies_->are_all_past();
    const auto now = steady_clock::now();
    // Words do not count: the watchdogs' come all the time.
    if (moves_bytes || peer_reaches_) active_at = now;
    if (did || (is_under_way && idle < kEagerPasses)) {
      if (!did) {
        lock.unlock();
        std::this_thread::yield();
      }
      continue;
    }
    const auto has_news = [this] { return board_->has_news; };
    if (limits_.has_messages || is_under_way) {
      const auto rest = duration_cast<microseconds>(now - active_at);
      board_->changed.wait_for(lock, std::clamp(rest / kRestsPerPause, kShortPause, kLongPause), has_news);
    } else {
      board_->changed.wait(lock, has_news);  // all that begins here begins with news
    }
  }
}

bool Pump::pass() {
  copies_->look();
  bool did = take_news();
  did = take_messages() || did;
  did = confirm_scattered() || did;
  did = advance() || did;
  did = post_gathered() || did;
  did = serve() || did;
  for (const auto& [_, channel] : channels_) did = feed(channel) || did;
  // Another one has the first choice of credits next time, or the first would starve the rest.
  if (channels_.size() > 1) {
    channels_.push_back(std::move(channels_.front()));
    channels_.pop_front();
  }
  send_all();
  return did;
}

// What is under way of a channel is given up at the same moment as what it has left to do: else a word could
// go out that tells of a parcel which did not.
bool Pump::take_news() {
  let_channels_go();
  std::vector<std::shared_ptr<Channel>> left;
  {
    std::lock_guard lock(board_->mutex);
    if (!board_->has_news) return false;
    board_->has_news = false;
    std::erase_if(channels_, [&](const auto& known) {
      const auto found = board_->channels.find(known.first);
      const bool has_left = found == board_->channels.end() || found->second != known.second;
      if (has_left) left.push_back(known.second);
      return has_left;
    });
    for (const auto& [stream, channel] : board_->channels) {
      const Known known(stream, channel);
      if (std::find(channels_.begin(), channels_.end(), known) == channels_.end()) channels_.push_back(known);
      if (channel->is_dropped) {
        given_up_.insert(channel.get());
        channel->pending -= channel->work.size();
        channel->work.clear();
        continue;
      }
      for (; channel->released > 0; --channel->released) {
        channel->work.push_back(std::move(channel->entries.front()));
        channel->entries.pop_front();
      }
    }
  }
  for (auto& channel : left) leaving_.push_back({copies_->mark_in(), std::move(channel)});
  return true;
}

// The word of a channel serves somebody else once the channel is gone, so not before it was written.
void Pump::let_channels_go() {
  for (; !leaving_.empty() && copies_->is_in_past(leaving_.front().at); leaving_.pop_front())
    given_up_.erase(leaving_.front().channel.get());
}

void Pump::end_entry(Channel& channel) {
  channel.work.pop_front();
  channel.next_move = 0;
  channel.moved = 0;
  std::lock_guard lock(board_->mutex);
  --channel.pending;
}

bool Pump::is_direct(const Move& move) const {
  return limits_.reaches_device || (!move.local_is_device && !move.remote_is_device);
}

// Takes what fits one parcel, cutting the last move where it must be.
size_t Pump::take_moves(Channel& channel, size_t most_bytes, size_t most_pieces, bool direct, Way way,
                        std::vector<Move>* moves) const {
  size_t bytes = 0;
  const Entry& entry = channel.work.front();
  while (channel.next_move < entry.moves.size() && bytes < most_bytes) {
    Move move = entry.moves[channel.next_move];
    if (move.way != way || is_direct(move) != direct) break;
    move.local += channel.moved;
    move.remote += channel.moved;
    move.mapped += channel.moved;
    const size_t rest = move.bytes - channel.moved;
    move.bytes = std::min(rest, most_bytes - bytes);
    Move* const last = moves->empty() ? nullptr : &moves->back();
    // Tensors may lie one behind the other, but are registered, and copied, one by one.
    const bool continues = last != nullptr && last->local + last->bytes == move.local &&
                           last->mapped + last->bytes == move.mapped &&
                           settings_.reach_of_own(last->local, last->bytes + move.bytes).has_value();
    if (!continues && moves->size() == most_pieces) break;
    if (continues) {
      last->bytes += move.bytes;
    } else {
      moves->push_back(move);
    }
    bytes += move.bytes;
    if (move.bytes == rest) {
      ++channel.next_move;
      channel.moved = 0;
    } else {
      channel.moved += move.bytes;
    }
  }
  return bytes;
}

bool Pump::start_parcel(const std::shared_ptr<Channel>& channel) {
  const Move& first = channel->work.front().moves[channel->next_move];
  const bool direct = is_direct(first);
  const bool pushes = first.way == Way::kWrite;
  Parcel parcel;
  parcel.channel = channel;
  size_t most_bytes = direct_bytes_;
  size_t most_pieces = limits_.pieces;
  if (direct) {
    if (!has_request_left(direct)) return false;
    parcel.kind = Parcel::kDirect;
  } else {
    most_bytes = std::min<size_t>(settings_.chunk_bytes, peer_.chunk_bytes);
    most_pieces = most_ranges_;
    if (pushes) {
      if (credits_.empty() || free_out_.empty()) return false;
      parcel.kind = Parcel::kPush;
      parcel.chunk = take_last(&free_out_);
      parcel.remote_chunk = take_last(&credits_);
    } else {
      if (free_pulled_.empty()) return false;
      parcel.kind = Parcel::kPull;
      parcel.chunk = take_last(&free_pulled_);
    }
  }
  parcel.bytes = take_moves(*channel, most_bytes, most_pieces, direct, first.way, &parcel.moves);
  if (parcel.kind == Parcel::kPush) gather(parcel, own_chunk(parcel.chunk));
  if (parcel.kind == Parcel::kPull) {
    Message ask{Message::kFetch, parcel.chunk, {}, {}};
    for (const Move& move : parcel.moves) ask.ranges.push_back({move.remote, move.bytes});
    say(std::move(ask));
    parcel.state = Parcel::kAwaited;
  }
  if (direct) {
    // Until it knows, the peer asks its engine once a millisecond only, which the bytes may wait for.
    if (limits_.has_messages && direct_++ == 0) say({Message::kReach, 1, {}, {}});
    post(parcel);
  }
  begin(std::move(parcel));
  return true;
}

void Pump::begin(Parcel parcel) {
  Channel& channel = *parcel.channel;
  ++channel.under_way;
  ++channel.unannounced;
  parcels_.push_back(std::move(parcel));
  std::lock_guard lock(board_->mutex);
  ++channel.pending;
}

void Pump::end(Parcel& parcel) {
  if (parcel.channel == nullptr) return;
  announced(parcel);
  if (parcel.kind == Parcel::kDirect && limits_.has_messages && --direct_ == 0)
    say({Message::kReach, 0, {}, {}});
  --parcel.channel->under_way;
  std::lock_guard lock(board_->mutex);
  --parcel.channel->pending;
}

// Into one of our chunks, piece behind piece.
void Pump::gather(Parcel& parcel, char* chunk) {
  bool has_device = false;
  for (const Move& move : parcel.moves) {
    if (move.local_is_device) {
      copies_->to_host(chunk, move.local, move.bytes);
      has_device = true;
    } else {
      std::memcpy(chunk, move.local, move.bytes);
    }
    chunk += move.bytes;
  }
  parcel.copied_at = has_device ? copies_->mark_out() : 0;
  parcel.state = Parcel::kGathering;
}

// Each kind leaves one to the other, which would wait for as long as there is more of the first.
bool Pump::has_request_left(bool direct) const {
  if (!limits_.has_messages) return requests_ < limits_.requests;
  const size_t of_kind = direct ? direct_ : requests_ - direct_;
  return requests_ < limits_.requests && of_kind + 1 < limits_.requests;
}

// The oldest chunk that is filled. One a pass: in between, chunks that came back are filled again.
bool Pump::post_gathered() {
  if (!has_request_left(false)) return false;
  const auto filled = std::find_if(parcels_.begin(), parcels_.end(), [&](const Parcel& one) {
    return one.state == Parcel::kGathering && copies_->is_out_past(one.copied_at);
  });
  if (filled == parcels_.end()) return false;
  post(*filled);
  return true;
}

void Pump::post(Parcel& parcel) {
  send_all();  // first, as an engine may take as long to accept bytes as the wire takes to carry them
  std::vector<Piece> pieces;
  Way way = Way::kWrite;
  if (parcel.kind == Parcel::kDirect) {
    way = parcel.moves.front().way;
    for (const Move& move : parcel.moves) pieces.push_back({move.local, move.remote, move.bytes});
  } else if (parcel.kind != Parcel::kDirectWord) {
    const uint64_t base =
        peer_.chunks_at + (parcel.kind == Parcel::kServe ? peer_.chunks * peer_.chunk_bytes : 0);
    pieces.push_back({own_chunk(parcel.chunk), base + parcel.remote_chunk * peer_.chunk_bytes, parcel.bytes});
  } else {
    pieces.push_back({parcel.moves.front().local, parcel.moves.front().remote, sizeof(uint64_t)});
  }
  parcel.request = engine_->post(way, pieces);
  parcel.state = Parcel::kPosted;
  ++requests_;
}

void Pump::announced(Parcel& parcel) {
  if (!parcel.counts_as_unannounced) return;
  parcel.counts_as_unannounced = false;
  --parcel.channel->unannounced;
}

bool Pump::advance() {
  bool did = false;
  for (auto parcel = parcels_.begin(); parcel != parcels_.end();) {
    bool has_ended = false;
    did = advance(*parcel, &has_ended) || did;
    if (!has_ended) {
      ++parcel;
      continue;
    }
    end(*parcel);
    parcel = parcels_.erase(parcel);
  }
  return did;
}

bool Pump::advance(Parcel& parcel, bool* has_ended) {
  const bool is_given_up = has_given_up(parcel.channel);
  const auto end = [&] {
    if (parcel.kind == Parcel::kPull) free_pulled_.push_back(parcel.chunk);
    if (parcel.kind == Parcel::kDirectWord) free_words_.push_back(parcel.chunk);
    *has_ended = true;
    return true;
  };
  switch (parcel.state) {
    case Parcel::kGathering:
      if (!is_given_up || !copies_->is_out_past(parcel.copied_at)) return false;  // post_gathered
      free_out_.push_back(parcel.chunk);
      credits_.push_back(parcel.remote_chunk);
      return end();
    case Parcel::kPosted: {
      const bool is_cancelled =
          parcel.kind == Parcel::kDirect && is_given_up && engine_->cancel(parcel.request);
      const Progress progress = is_cancelled ? Progress{Progress::kDone, ""} : engine_->poll(parcel.request);
      if (progress.state == Progress::kUnderWay) return false;
      --requests_;
      require(progress.state == Progress::kDone, kFailed, "a transfer with ", settings_.peer,
              " failed: ", progress.why);
      if (parcel.kind == Parcel::kDirect || parcel.kind == Parcel::kDirectWord) return end();
      free_out_.push_back(parcel.chunk);
      if (is_given_up) {
        credits_.push_back(parcel.remote_chunk);  // nobody was told of what lies there
        return end();
      }
      if (parcel.kind == Parcel::kServe) {
        serving_.erase(parcel.remote_chunk);
        say({Message::kFilled, parcel.remote_chunk, {}, {}});
        return end();
      }
      Message filled{Message::kScatter, parcel.remote_chunk, {}, {}};
      for (const Move& move : parcel.moves) filled.ranges.push_back({move.remote, move.bytes});
      say(std::move(filled));
      announced(parcel);
      parcel.state = Parcel::kAwaited;
      return true;
    }
    case Parcel::kAwaited:
      return false;  // on_taken, on_filled
    case Parcel::kScattering:
      return copies_->is_in_past(parcel.copied_at) && end();
  }
  return false;
}

bool Pump::feed(const std::shared_ptr<Channel>& channel) {
  bool did = false;
  while (!channel->work.empty()) {
    const Entry& entry = channel->work.front();
    if (entry.kind == Entry::kMoves) {
      while (channel->next_move < entry.moves.size()) {
        if (!start_parcel(channel)) return did;
        did = true;
      }
    } else if (entry.kind == Entry::kWord) {
      if (limits_.has_messages) {
        if (channel->unannounced > 0) return did;
        say({Message::kWords, 0, {}, {{entry.remote, entry.value}}});
      } else if (!start_direct_word(channel, entry)) {
        return did;
      }
    } else {
      if (channel->under_way > 0) return did;
      copies_->write_word(channel->done.get(), entry.value);
    }
    did = true;
    end_entry(*channel);
  }
  look_at_quiet(channel);
  return did;
}

// One after the other, as their order counts.
bool Pump::start_direct_word(const std::shared_ptr<Channel>& channel, const Entry& entry) {
  if (channel->under_way > 0 || requests_ >= limits_.requests || free_words_.empty()) return false;
  Parcel parcel;
  parcel.kind = Parcel::kDirectWord;
  parcel.channel = channel;
  parcel.chunk = take_last(&free_words_);
  char* const word =
      pushed_chunk(static_cast<uint32_t>(3 * settings_.chunks)) + parcel.chunk * sizeof(uint64_t);
  std::memcpy(word, &entry.value, sizeof entry.value);
  parcel.moves.push_back({Way::kWrite, word, entry.remote, sizeof(uint64_t)});
  post(parcel);
  begin(std::move(parcel));
  return true;
}

// A stream that was given up: once nothing of it is under way, nor a write to its word.
void Pump::look_at_quiet(const std::shared_ptr<Channel>& channel) {
  if (!has_given_up(channel) || channel->under_way > 0) return;
  if (channel->quiet_mark == 0) channel->quiet_mark = copies_->mark_in();
  if (!copies_->is_in_past(channel->quiet_mark)) return;
  std::lock_guard lock(board_->mutex);
  channel->is_quiet = true;
}

}  // namespace datadist::engine
