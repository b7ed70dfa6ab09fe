#include "transport/engine/engine_transport.h"

#include <algorithm>
#include <thread>
#include <utility>

#include "acl/check.h"
#include "acl/queue.h"
#include "acl/stream.h"
#include "error.h"
#include "link/handles.h"
#include "transport/engine/engines.h"
#include "transport/engine/messages.h"
#include "transport/engine/own_engine.h"
#include "transport/engine/pump.h"

namespace datadist::engine {
namespace {

constexpr aclError kGone = 507000;  // what a refused call is said to have returned
constexpr aclError kNotOurs = 107000;

HandleTable<Channel>& open_channels() {
  static auto* table = new HandleTable<Channel>("channel of a transport");
  return *table;
}

// On a thread of the runtime: the stream has come so far.
void stream_came_to_mark(void* number) {
  const auto channel = open_channels().find(reinterpret_cast<int64_t>(number));
  const auto board = channel != nullptr ? channel->board.lock() : nullptr;
  if (board == nullptr) return;
  std::lock_guard lock(board->mutex);
  if (channel->is_dropped || channel->marks.empty()) return;
  channel->released += channel->marks.front();
  channel->marks.pop_front();
  board->tell();
}

class EngineTransport : public Transport {
 public:
  EngineTransport(Settings settings, std::unique_ptr<Engine> engine)
      : settings_(std::move(settings)),
        name_(settings_.engine),
        engine_(std::move(engine)),
        limits_(engine_->limits()),
        can_cut_off_(engine_->can_take_back()),
        placeholders_(std::make_shared<Placeholders>()),
        board_(std::make_shared<Board>()) {
    acl::ContextScope restore;
    DATADIST_ACL(acl::set_device(settings_.device));
    if (limits_.reaches_device) settings_.chunks = 0;  // nothing goes through them
    const size_t bytes = 3 * settings_.chunks * settings_.chunk_bytes + kDirectWords * sizeof(uint64_t);
    chunks_ = std::make_unique<acl::PinnedBuffer>(bytes);
    engine_->add_memory(chunks_->as<char>(), bytes, false);
  }

  ~EngineTransport() override {
    if (ending_.joinable()) ending_.join();
    pump_.reset();
    for (const auto& [_, channel] : board_->channels) open_channels().remove(channel->number);
    engine_.reset();  // before the memory that it knows
    acl::ContextScope restore;
    acl::set_device(settings_.device);
    chunks_.reset();
  }

  const char* name() const override { return name_.c_str(); }

  std::string address() override {
    std::lock_guard lock(engine_mutex_);
    if (engine_ == nullptr) return {};
    return encode(Address{reinterpret_cast<uint64_t>(chunks_->as<char>()), settings_.chunk_bytes,
                          static_cast<uint32_t>(settings_.chunks), engine_->address()});
  }

  void connect(const std::string& peer_address) override {
    std::string why;
    auto peer = decode_address(peer_address, &why);
    require(peer.has_value(), kLinkFailed, "connect_link: ", settings_.peer, " gave no address for the ",
            name_, " engine: ", why);
    require((peer->chunks == 0) == (settings_.chunks == 0), kLinkFailed, "connect_link: ", settings_.peer,
            " has ", peer->chunks, " chunks for the ", name_, " engine, and this end ", settings_.chunks);
    std::lock_guard lock(engine_mutex_);
    require(engine_ != nullptr && pump_ == nullptr, kLinkFailed, "connect_link: connected before");
    engine_->connect(peer->engine);
    pump_ = std::make_unique<Pump>(settings_, board_, engine_, &engine_mutex_, chunks_->as<char>(), *peer);
    is_connected_ = true;
    // The pump's from here on: it lets the engine go when it ends.
    weak_engine_ = engine_;
    engine_.reset();
  }

  std::vector<Exported> export_memory(const std::vector<OwnMemory>& memory) override {
    std::vector<Exported> exported;
    for (const OwnMemory& own : memory) {
      const bool is_device = is_on_device(own.place.reach);
      exported.push_back({add_memory(own), 0, reinterpret_cast<uint64_t>(own.place.address),
                          is_device ? MemoryKind::kDevice : MemoryKind::kPrivateHost});
    }
    return exported;
  }

  void use_memory(const OwnMemory& memory) override { add_memory(memory); }

  void forget_memory(char* address) override {
    std::lock_guard known_lock(known_mutex_);
    if (known_.erase(address) == 0) return;
    std::lock_guard lock(engine_mutex_);
    if (const auto engine = current_engine()) engine->remove_memory(address);
  }

  Mapped map(const Exported& memory, size_t bytes) override {
    if (!memory.handle.empty()) {
      std::lock_guard lock(engine_mutex_);
      if (const auto engine = current_engine()) engine->learn_memory(memory.handle);
    }
    return placeholders_->make(memory, bytes);
  }

  Reach reach_of(MemoryKind) const override { return Reach::kEngine; }

  aclError copy(void* dst, const void* src, size_t bytes, aclrtStream stream) override {
    std::vector<Move> moves(1);
    if (!find_move(dst, src, bytes, &moves.front())) return kNotOurs;
    return add_moves(std::move(moves), stream);
  }

  aclError copy_rows(const Rows& rows, aclrtStream stream) override {
    std::vector<Move> moves(rows.height);
    for (size_t i = 0; i < rows.height; ++i) {
      const Rows row = rows.row(i);
      if (!find_move(row.dst, row.src, row.width, &moves[i])) return kNotOurs;
    }
    return add_moves(std::move(moves), stream);
  }

  aclError write_word(void* remote_word, uint64_t value, void*, aclrtStream stream) override {
    const auto remote = placeholders_->find(remote_word, sizeof value);
    if (!remote) return kNotOurs;
    {
      std::lock_guard lock(board_->mutex);
      if (board_->is_severed) return kGone;
      Channel& channel = channel_of(stream);
      channel.entries.push_back({Entry::kWord, {}, remote->address, value});
      added(channel);
    }
    return flush(stream);
  }

  aclError flush(aclrtStream stream) override {
    int64_t number = 0;
    {
      std::lock_guard lock(board_->mutex);
      const auto found = board_->channels.find(stream);
      if (found == board_->channels.end() || found->second->unmarked == 0) return 0;
      if (board_->is_severed) return kGone;
      Channel& channel = *found->second;
      channel.marks.push_back(std::exchange(channel.unmarked, 0));
      number = channel.number;
    }
    // Without the mutex: it may run at once.
    return acl::queue_call(&stream_came_to_mark, reinterpret_cast<void*>(number), stream);
  }

  aclError settle(aclrtStream stream) override {
    std::shared_ptr<char> done;
    uint64_t value = 0;
    {
      std::lock_guard lock(board_->mutex);
      const auto found = board_->channels.find(stream);
      if (found == board_->channels.end() || !found->second->must_settle) return 0;
      if (board_->is_severed) return kGone;
      Channel& channel = *found->second;
      value = ++channel.settles;
      channel.entries.push_back({Entry::kSettle, {}, 0, value});
      added(channel);
      channel.must_settle = false;
      done = channel.done;
    }
    const aclError code = flush(stream);
    return code != 0 ? code : acl::queue_wait(done.get(), value, stream);
  }

  bool drop(aclrtStream stream) override {
    std::shared_ptr<Channel> channel;
    std::lock_guard lock(board_->mutex);
    const auto found = board_->channels.find(stream);
    if (found == board_->channels.end()) return true;
    channel = found->second;
    const bool is_idle = channel->pending == 0 && !channel->is_dropped;
    if (!is_idle && !channel->is_dropped) {
      channel->is_dropped = true;
      channel->pending -= channel->entries.size();
      channel->entries.clear();
      channel->released = 0;
      board_->tell();
    }
    const bool nobody_pumps = pump_ == nullptr;
    if (!is_idle && !channel->is_quiet && !board_->is_severed && !nobody_pumps) return false;
    open_channels().remove(channel->number);
    board_->channels.erase(found);
    board_->tell();
    return true;
  }

  std::optional<std::string> failure() const override {
    std::lock_guard lock(board_->mutex);
    return board_->has_failed ? std::optional(board_->why) : std::nullopt;
  }

  bool has_sent_all() const override {
    std::lock_guard lock(board_->mutex);
    return board_->is_severed || std::all_of(board_->channels.begin(), board_->channels.end(),
                                             [](const auto& entry) { return entry.second->pending == 0; });
  }

  bool can_cut_off() const override { return can_cut_off_; }

  void sever() override {
    std::lock_guard lock(board_->mutex);
    // The watchdog asks, which has no time for it.
    if (!is_connected_ && !std::exchange(board_->must_stop, true))
      ending_ = std::thread([this] { take_back(); });
    board_->must_stop = true;
    board_->tell();
  }

  bool is_severed() const override { return board_->is_severed; }
  std::shared_ptr<const std::atomic<bool>> cut_off() const override { return {board_, &board_->is_cut_off}; }

 private:
  // Of an engine that no pump has: the peer may have been told of it all the same.
  void take_back() {
    acl::ThreadDevice device(settings_.device);
    std::lock_guard lock(engine_mutex_);
    if (engine_ == nullptr) return;
    board_->is_cut_off = engine_->take_back();
    engine_.reset();
    board_->is_severed = true;
  }

  // With the engine's mutex; nullptr once it is gone.
  std::shared_ptr<Engine> current_engine() const {
    return engine_ != nullptr ? engine_ : weak_engine_.lock();
  }

  // What the engine can make use of; the rest goes through its chunks.
  std::string add_memory(const OwnMemory& own) {
    const bool is_device = is_on_device(own.place.reach);
    if (is_device && !limits_.reaches_device) return {};
    std::lock_guard known_lock(known_mutex_);
    const auto found = known_.find(own.place.address);
    if (found != known_.end() && found->second.bytes >= own.bytes) return found->second.said;
    std::lock_guard lock(engine_mutex_);
    const auto engine = current_engine();
    if (engine == nullptr) return {};
    if (found != known_.end()) {
      engine->remove_memory(own.place.address);
      known_.erase(found);
    }
    Known known{own.bytes, engine->add_memory(own.place.address, own.bytes, is_device)};
    return known_.emplace(own.place.address, std::move(known)).first->second.said;
  }

  bool find_move(void* dst, const void* src, size_t bytes, Move* move) const {
    const auto to = placeholders_->find(dst, bytes);
    const auto from = to ? std::nullopt : placeholders_->find(src, bytes);
    if (!to && !from) return false;
    move->way = to ? Way::kWrite : Way::kRead;
    move->local = to ? static_cast<char*>(const_cast<void*>(src)) : static_cast<char*>(dst);
    move->remote = to ? to->address : from->address;
    move->remote_is_device = (to ? to->kind : from->kind) == MemoryKind::kDevice;
    move->local_is_device = is_on_device(settings_.reach_of_own(move->local, bytes).value_or(Reach::kDevice));
    move->bytes = bytes;
    move->mapped = static_cast<const char*>(to ? dst : src);
    return true;
  }

  aclError add_moves(std::vector<Move> moves, aclrtStream stream) {
    std::lock_guard lock(board_->mutex);
    if (board_->is_severed) return kGone;
    Channel& channel = channel_of(stream);
    const bool joins = channel.unmarked > 0 && channel.entries.back().kind == Entry::kMoves;
    if (joins) {
      auto& last = channel.entries.back().moves;
      last.insert(last.end(), moves.begin(), moves.end());
    } else {
      channel.entries.push_back({Entry::kMoves, std::move(moves), 0, 0});
      added(channel);
    }
    return 0;
  }

  static void added(Channel& channel) {
    ++channel.unmarked;
    ++channel.pending;
    channel.must_settle = true;
  }

  // With the board's mutex.
  Channel& channel_of(aclrtStream stream) {
    auto& channel = board_->channels[stream];
    if (channel == nullptr) {
      channel = std::make_shared<Channel>();
      channel->board = board_;
      channel->number = open_channels().add(channel);
      channel->done = settings_.take_word();
    }
    return *channel;
  }

  struct Known {
    size_t bytes = 0;
    std::string said;
  };

  Settings settings_;
  const std::string name_;
  mutable EngineMutex engine_mutex_;
  std::shared_ptr<Engine> engine_;  // until it is connected
  std::weak_ptr<Engine> weak_engine_;
  std::atomic<bool> is_connected_{false};
  const Limits limits_;
  const bool can_cut_off_;
  std::unique_ptr<acl::PinnedBuffer> chunks_;
  std::mutex known_mutex_;  // before the engine's: who asks for what is known waits for no engine
  std::map<char*, Known> known_;
  const std::shared_ptr<Placeholders> placeholders_;
  const std::shared_ptr<Board> board_;
  std::unique_ptr<Pump> pump_;
  std::thread ending_;  // of an engine that was never connected
};

}  // namespace

std::unique_ptr<Transport> make_transport(Settings settings) {
  const Kind* const kind = find_kind(settings.engine);
  require(kind != nullptr, kFeatureNotEnabled, "there is no transport '", settings.engine, "' (207000)");
  const std::string why = kind->why_not();
  require(why.empty(), kFeatureNotEnabled, "the transport ", settings.engine, " is not here (207000): ", why);
  auto engine = kind->make({settings.device, settings.listen_ip, settings.options,
                            settings.is_peer_on_this_host, settings.is_peer_in_this_super_pod});
  return make_transport(std::move(settings), std::move(engine));
}

std::unique_ptr<Transport> make_transport(Settings settings, std::unique_ptr<Engine> engine) {
  return std::make_unique<EngineTransport>(std::move(settings), std::move(engine));
}

}  // namespace datadist::engine
