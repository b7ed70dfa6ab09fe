#include "transport/engine/pump.h"

#include <sys/prctl.h>

#include <algorithm>
#include <chrono>
#include <cstring>

#include "acl/check.h"
#include "acl/queue.h"
#include "error.h"
#include "link/handles.h"

namespace datadist::engine {
namespace {

using std::chrono::microseconds;

constexpr size_t kDirectBytes = 16 << 20;  // of one request: a few of them keep a wire busy
constexpr int kMessagesPerPass = 64;
constexpr int kEagerPasses = 64;  // without a pause, while a request is under way
constexpr auto kShortPause = microseconds(20);
constexpr auto kLongPause = microseconds(1000);

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

std::vector<uint32_t> count_down(size_t count) {
  std::vector<uint32_t> numbers;
  for (size_t i = count; i > 0; --i) numbers.push_back(static_cast<uint32_t>(i - 1));
  return numbers;
}

uint32_t take_last(std::vector<uint32_t>* numbers) {
  const uint32_t number = numbers->back();
  numbers->pop_back();
  return number;
}

}  // namespace

Pump::Pump(Settings settings, std::shared_ptr<Board> board, std::shared_ptr<Engine> engine,
           std::mutex* engine_mutex, char* chunks, Address peer)
    : settings_(std::move(settings)),
      board_(std::move(board)),
      engine_(std::move(engine)),
      engine_mutex_(engine_mutex),
      limits_(engine_->limits()),
      chunks_(chunks),
      peer_(std::move(peer)),
      most_ranges_((limits_.message_bytes - kMessageHead) / kBytesOfARange),
      calls_(std::make_shared<Calls>()),
      free_out_(count_down(settings_.chunks)),
      free_pulled_(count_down(settings_.chunks)),
      credits_(count_down(peer_.chunks)),
      free_words_(count_down(kDirectWords)) {
  calls_->board = board_;
  calls_number_ = open_calls().add(calls_);
  thread_ = std::thread([this] { run(); });
}

Pump::~Pump() {
  {
    std::lock_guard lock(board_->mutex);
    board_->must_stop = true;
    board_->tell();
  }
  thread_.join();
  open_calls().remove(calls_number_);
}

void Pump::run() {
  prctl(PR_SET_TIMERSLACK, 1000UL);  // pauses are short
  std::string why;
  try {
    acl::ThreadDevice device(settings_.device);
    context_ = std::make_unique<acl::Context>(settings_.device);
    context_->make_current();
    out_ = std::make_unique<acl::Stream>(*context_, acl::OnFailure::kStop);
    in_ = std::make_unique<acl::Stream>(*context_, acl::OnFailure::kStop);
    try {
      loop();
    } catch (const std::exception& error) {
      why = error.what();
    }
    // First what could still write here, then the engine that could still read or write there.
    in_.reset();
    out_.reset();
    context_.reset();
  } catch (const std::exception& error) {
    why = error.what();
  }
  {
    std::lock_guard engine_lock(*engine_mutex_);
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
  while (true) {
    bool did = false;
    {
      std::lock_guard lock(*engine_mutex_);
      did = pass();
    }
    idle = did ? 0 : idle + 1;
    if (!did && calls_are_pending()) check_streams();
    std::unique_lock lock(board_->mutex);
    if (board_->must_stop) return;
    if (did || (requests_ > 0 && idle < kEagerPasses)) {
      if (!did) {
        lock.unlock();
        std::this_thread::yield();
      }
      continue;
    }
    const bool is_busy = !parcels_.empty() || !scattered_.empty() || idle < 100;
    board_->changed.wait_for(lock, is_busy ? kShortPause : kLongPause, [this] { return board_->has_news; });
  }
}

void Pump::check_streams() {
  for (const auto* stream : {out_.get(), in_.get()}) {
    const aclError code = stream->query();
    require(code == 0, kFailed, acl::describe("a copy between the device and its buffers", code));
  }
}

bool Pump::pass() {
  bool did = take_news();
  did = take_messages() || did;
  did = confirm_scattered() || did;
  did = advance() || did;
  did = serve() || did;
  for (const auto& channel : channels_) did = feed(channel) || did;
  send_all();
  return did;
}

bool Pump::take_news() {
  std::lock_guard lock(board_->mutex);
  if (!board_->has_news) return false;
  board_->has_news = false;
  channels_.clear();
  for (const auto& [_, channel] : board_->channels) {
    channels_.push_back(channel);
    if (channel->is_dropped) {
      channel->pending -= channel->work.size();
      channel->work.clear();
      continue;
    }
    for (; channel->released > 0; --channel->released) {
      channel->work.push_back(std::move(channel->entries.front()));
      channel->entries.pop_front();
    }
  }
  return true;
}

bool Pump::is_dropped(const Parcel& parcel) const {
  if (parcel.channel == nullptr) return false;
  std::lock_guard lock(board_->mutex);
  return parcel.channel->is_dropped;
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
    const size_t rest = move.bytes - channel.moved;
    move.bytes = std::min(rest, most_bytes - bytes);
    Move* const last = moves->empty() ? nullptr : &moves->back();
    const bool continues = last != nullptr && last->local + last->bytes == move.local &&
                           last->remote + last->bytes == move.remote &&
                           last->local_is_device == move.local_is_device;
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
  size_t most_bytes = kDirectBytes;
  size_t most_pieces = limits_.pieces;
  if (direct) {
    if (requests_ >= limits_.requests) return false;
    parcel.kind = Parcel::kDirect;
    parcel.state = Parcel::kReady;
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
  if (parcel.kind == Parcel::kDirect) post(parcel);
  ++channel->under_way;
  ++channel->unannounced;
  parcels_.push_back(std::move(parcel));
  return true;
}

// Into one of our chunks, piece behind piece.
void Pump::gather(Parcel& parcel, char* chunk) {
  bool has_device = false;
  for (const Move& move : parcel.moves) {
    if (move.local_is_device) {
      DATADIST_ACL(acl::queue_to_host(chunk, move.local, move.bytes, out_->get()));
      has_device = true;
    } else {
      std::memcpy(chunk, move.local, move.bytes);
    }
    chunk += move.bytes;
  }
  parcel.copied_at = has_device ? call_out() : 0;
  parcel.state = Parcel::kGathering;
}

uint64_t Pump::call_out() {
  DATADIST_ACL(acl::queue_call(&out_called, reinterpret_cast<void*>(calls_number_), out_->get()));
  return ++out_queued_;
}

uint64_t Pump::call_in() {
  DATADIST_ACL(acl::queue_call(&in_called, reinterpret_cast<void*>(calls_number_), in_->get()));
  return ++in_queued_;
}

void Pump::post(Parcel& parcel) {
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
  if (parcel.channel == nullptr || !parcel.counts_as_unannounced) return;
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
    announced(*parcel);
    if (parcel->channel != nullptr) --parcel->channel->under_way;
    parcel = parcels_.erase(parcel);
  }
  return did;
}

bool Pump::advance(Parcel& parcel, bool* has_ended) {
  const auto end = [&] {
    if (parcel.kind == Parcel::kPull) free_pulled_.push_back(parcel.chunk);
    if (parcel.kind == Parcel::kDirectWord) free_words_.push_back(parcel.chunk);
    *has_ended = true;
    return true;
  };
  switch (parcel.state) {
    case Parcel::kGathering:
      if (calls_->out < parcel.copied_at) return false;
      if (is_dropped(parcel)) {
        free_out_.push_back(parcel.chunk);
        credits_.push_back(parcel.remote_chunk);
        return end();
      }
      parcel.state = Parcel::kReady;
      [[fallthrough]];
    case Parcel::kReady:
      if (requests_ >= limits_.requests) return false;
      post(parcel);
      return true;
    case Parcel::kPosted: {
      const bool is_cancelled =
          parcel.kind == Parcel::kDirect && is_dropped(parcel) && engine_->cancel(parcel.request);
      const Progress progress = is_cancelled ? Progress{Progress::kDone, ""} : engine_->poll(parcel.request);
      if (progress.state == Progress::kUnderWay) return false;
      --requests_;
      require(progress.state == Progress::kDone, kFailed, "a transfer with ", settings_.peer,
              " failed: ", progress.why);
      if (parcel.kind == Parcel::kDirect || parcel.kind == Parcel::kDirectWord) return end();
      free_out_.push_back(parcel.chunk);
      if (is_dropped(parcel)) {
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
      return calls_->in >= parcel.copied_at && end();
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
      DATADIST_ACL(acl::queue_write(channel->done.get(), entry.value, in_->get()));
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
  ++channel->under_way;
  ++channel->unannounced;
  parcels_.push_back(std::move(parcel));
  return true;
}

// A stream that was given up: once nothing of it is under way, nor a write to its word.
void Pump::look_at_quiet(const std::shared_ptr<Channel>& channel) {
  {
    std::lock_guard lock(board_->mutex);
    if (!channel->is_dropped || channel->is_quiet || channel->under_way > 0) return;
  }
  if (channel->quiet_mark == 0) channel->quiet_mark = call_in();
  if (calls_->in < channel->quiet_mark) return;
  std::lock_guard lock(board_->mutex);
  channel->is_quiet = true;
}

// --- the peer's messages

bool Pump::take_messages() {
  int taken = 0;
  for (; taken < kMessagesPerPass; ++taken) {
    const auto text = engine_->receive();
    if (!text) break;
    auto message = decode(*text);
    require(message.has_value(), kFailed, settings_.peer, " sent ", text->size(),
            " bytes that are no message of this version");
    switch (message->kind) {
      case Message::kWords:
        on_words(*message);
        break;
      case Message::kScatter:
        on_scatter(*message);
        break;
      case Message::kTaken:
        on_taken(*message);
        break;
      case Message::kFetch:
        on_fetch(std::move(*message));
        break;
      case Message::kFilled:
        on_filled(*message);
        break;
    }
  }
  return taken > 0;
}

Reach Pump::require_named(Named what, const Range& range) const {
  const auto reach = settings_.named_by_peer(what, reinterpret_cast<const char*>(range.address), range.bytes);
  require(reach.has_value(), kFailed, settings_.peer, " named ", range.bytes, " bytes at ", range.address,
          ", which it was not offered");
  return *reach;
}

void Pump::on_words(const Message& message) {
  for (const WordWrite& word : message.words) {
    require_named(Named::kWord, {word.address, sizeof word.value});
    DATADIST_ACL(acl::queue_write(reinterpret_cast<void*>(word.address), word.value, in_->get()));
  }
}

void Pump::on_scatter(const Message& message) {
  require(message.chunk < settings_.chunks && busy_pushed_.insert(message.chunk).second, kFailed,
          settings_.peer, " filled chunk ", message.chunk, ", which is not its to fill");
  const char* from = pushed_chunk(message.chunk);
  size_t left = settings_.chunk_bytes;
  bool has_device = false;
  for (const Range& range : message.ranges) {
    require(range.bytes <= left, kFailed, settings_.peer, " sent more than a chunk holds");
    left -= range.bytes;
    auto* const to = reinterpret_cast<char*>(range.address);
    if (require_named(Named::kWritten, range) == Reach::kDevice) {
      DATADIST_ACL(acl::queue_to_device(to, from, range.bytes, in_->get()));
      has_device = true;
    } else {
      std::memcpy(to, from, range.bytes);
    }
    from += range.bytes;
  }
  scattered_.push_back({has_device ? call_in() : 0, message.chunk});
}

bool Pump::confirm_scattered() {
  bool did = false;
  while (!scattered_.empty() && calls_->in >= scattered_.front().at) {
    const uint32_t chunk = scattered_.front().chunk;
    scattered_.pop_front();
    busy_pushed_.erase(chunk);
    say({Message::kTaken, chunk, {}, {}});
    did = true;
  }
  return did;
}

void Pump::on_taken(const Message& message) {
  const auto parcel = std::find_if(parcels_.begin(), parcels_.end(), [&](const Parcel& one) {
    return one.kind == Parcel::kPush && one.state == Parcel::kAwaited && one.remote_chunk == message.chunk;
  });
  require(parcel != parcels_.end(), kFailed, settings_.peer, " took chunk ", message.chunk,
          ", which was not filled");
  credits_.push_back(message.chunk);
  --parcel->channel->under_way;
  parcels_.erase(parcel);
}

void Pump::on_fetch(Message message) {
  require(message.chunk < peer_.chunks && serving_.insert(message.chunk).second, kFailed, settings_.peer,
          " asks for chunk ", message.chunk, ", which it has asked for or does not have");
  const size_t most = std::min<size_t>(settings_.chunk_bytes, peer_.chunk_bytes);
  size_t bytes = 0;
  for (const Range& range : message.ranges) {
    require(range.bytes <= most - bytes, kFailed, settings_.peer, " asks for more than a chunk holds");
    bytes += range.bytes;
    require_named(Named::kRead, range);
  }
  require(bytes > 0, kFailed, settings_.peer, " asks for nothing");
  to_serve_.push_back(std::move(message));
}

bool Pump::serve() {
  bool did = false;
  for (; !to_serve_.empty() && !free_out_.empty(); to_serve_.pop_front()) {
    Parcel parcel;
    parcel.kind = Parcel::kServe;
    parcel.remote_chunk = to_serve_.front().chunk;
    parcel.chunk = take_last(&free_out_);
    for (const Range& range : to_serve_.front().ranges) {
      const Reach reach = require_named(Named::kRead, range);  // again: it may have been withdrawn since
      parcel.moves.push_back({Way::kWrite, reinterpret_cast<char*>(range.address), 0, range.bytes,
                              reach == Reach::kDevice, true});
      parcel.bytes += range.bytes;
    }
    gather(parcel, own_chunk(parcel.chunk));
    parcels_.push_back(std::move(parcel));
    did = true;
  }
  return did;
}

void Pump::on_filled(const Message& message) {
  const auto parcel = std::find_if(parcels_.begin(), parcels_.end(), [&](const Parcel& one) {
    return one.kind == Parcel::kPull && one.state == Parcel::kAwaited && one.chunk == message.chunk;
  });
  require(parcel != parcels_.end(), kFailed, settings_.peer, " filled chunk ", message.chunk,
          ", which nobody waits for");
  scatter_pull(*parcel);
}

void Pump::scatter_pull(Parcel& parcel) {
  parcel.state = Parcel::kScattering;
  parcel.copied_at = 0;
  if (is_dropped(parcel)) return;
  const char* from = pulled_chunk(parcel.chunk);
  bool has_device = false;
  for (const Move& move : parcel.moves) {
    if (move.local_is_device) {
      DATADIST_ACL(acl::queue_to_device(move.local, from, move.bytes, in_->get()));
      has_device = true;
    } else {
      std::memcpy(move.local, from, move.bytes);
    }
    from += move.bytes;
  }
  if (has_device) parcel.copied_at = call_in();
}

void Pump::say(Message message) {
  Message* const last = outgoing_.empty() ? nullptr : &outgoing_.back();
  const bool joins = last != nullptr && last->kind == Message::kWords && message.kind == Message::kWords &&
                     last->words.size() < most_ranges_;
  if (joins) {
    last->words.push_back(message.words.front());
  } else {
    outgoing_.push_back(std::move(message));
  }
}

void Pump::send_all() {
  for (; !outgoing_.empty(); outgoing_.pop_front()) engine_->send(encode(outgoing_.front()));
}

}  // namespace datadist::engine
