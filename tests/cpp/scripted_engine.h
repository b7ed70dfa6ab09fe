// One end of a link over an engine, against an engine that does what a test says.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstring>
#include <deque>
#include <functional>
#include <mutex>
#include <set>
#include <thread>

#include "acl/check.h"
#include "acl/queue.h"
#include "acl/stream.h"
#include "check.h"
#include "error.h"
#include "transport/engine/engine_transport.h"
#include "transport/engine/messages.h"
#include "transport/engine/own_engine.h"
#include "transport/mapped/mapped.h"

namespace datadist::scripted {

using namespace engine;

constexpr size_t kChunk = 4096;
constexpr uint64_t kPeerChunks = 1 << 20;
constexpr uint64_t kPeerMemory = 1 << 30;
constexpr size_t kBytes = 64 * kChunk;
constexpr size_t kPageBytes = 4096;

// What the test and the engine share.
struct Wire {
  std::mutex mutex;
  std::deque<std::string> incoming;
  int received = 0;
  int looks = 0;  // for messages: at least one a pass
  std::vector<Message> sent;
  std::set<int64_t> under_way;
  bool finishes = true;  // requests, at the next poll
  bool has_messages = true;
  bool takes_back = true;            // all memory, when it is asked to
  std::function<void()> at_receive;  // once, on the thread of the transport
  std::function<void(const std::vector<engine::Piece>&)> at_post;

  void put(std::string text) {
    std::lock_guard lock(mutex);
    incoming.push_back(std::move(text));
  }
  std::vector<Message> messages() {
    std::lock_guard lock(mutex);
    return sent;
  }
  size_t requests() {
    std::lock_guard lock(mutex);
    return under_way.size();
  }
};

class Scripted : public Engine {
 public:
  explicit Scripted(std::shared_ptr<Wire> wire) : wire_(std::move(wire)) {}
  Limits limits() const override {
    Limits limits;
    limits.has_messages = wire_->has_messages;
    limits.reaches_device = !wire_->has_messages;
    return limits;
  }
  std::string add_memory(char*, size_t, bool) override { return {}; }
  void remove_memory(char*) override {}
  void learn_memory(const std::string&) override {}
  std::string address() override { return "scripted"; }
  void connect(const std::string&) override {}
  int64_t post(Way, const std::vector<engine::Piece>& pieces) override {
    std::lock_guard lock(wire_->mutex);
    if (wire_->at_post) wire_->at_post(pieces);
    wire_->under_way.insert(++last_);
    return last_;
  }
  Progress poll(int64_t request) override {
    std::lock_guard lock(wire_->mutex);
    if (!wire_->finishes) return {};
    wire_->under_way.erase(request);
    return {Progress::kDone, ""};
  }
  bool cancel(int64_t) override { return false; }
  bool can_take_back() const override { return true; }
  bool take_back() override {
    std::lock_guard lock(wire_->mutex);
    return wire_->takes_back;
  }
  void send(const std::string& message) override {
    std::string why;
    std::lock_guard lock(wire_->mutex);
    wire_->sent.push_back(*decode(message, &why));
  }
  std::optional<std::string> receive() override {
    std::function<void()> call;
    {
      std::lock_guard lock(wire_->mutex);
      call.swap(wire_->at_receive);
    }
    if (call) call();
    std::lock_guard lock(wire_->mutex);
    ++wire_->looks;
    if (wire_->incoming.empty()) return std::nullopt;
    std::string text = std::move(wire_->incoming.front());
    wire_->incoming.pop_front();
    ++wire_->received;
    return text;
  }

 private:
  const std::shared_ptr<Wire> wire_;
  int64_t last_ = 0;
};

inline bool becomes(const std::function<bool()>& is_true) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (!is_true()) {
    if (std::chrono::steady_clock::now() > end) return false;
    std::this_thread::sleep_for(std::chrono::microseconds(100));
  }
  return true;
}

class End {
 public:
  explicit End(size_t chunk_bytes = kChunk, size_t chunks = 2, bool is_host = false, bool has_messages = true)
      : memory(mapped::allocate(0, kBytes)), page(mapped::allocate(0, kPageBytes)) {
    DATADIST_ACL(acl::set_device(0));
    wire->has_messages = has_messages;
    Settings settings;
    settings.engine = "scripted";
    settings.peer = "cluster 9";
    settings.chunk_bytes = chunk_bytes;
    settings.chunks = chunks;
    settings.take_word = [this] {
      const DeviceMemory word = mapped::allocate(0, sizeof(uint64_t));
      DATADIST_ACL(aclrtMemset(word.address, sizeof(uint64_t), 0, sizeof(uint64_t)));
      return std::shared_ptr<char>(word.address, [this, word](char*) {
        acl::ContextScope restore;
        acl::set_device(0);
        uint64_t value = 0;
        aclrtMemcpy(&value, sizeof value, word.address, sizeof value, ACL_MEMCPY_DEVICE_TO_HOST);
        last_word = value;
        words_back = true;
      });
    };
    settings.named_by_peer = [this](Named what, const char* address, size_t bytes) -> std::optional<Reach> {
      const DeviceMemory& of = what == Named::kWord ? page : memory;
      const size_t size = what == Named::kWord ? words_offered : offered;
      if (address < of.address || address >= of.address + size) return std::nullopt;
      if (bytes > static_cast<size_t>(of.address + size - address)) return std::nullopt;
      return Reach::kDevice;
    };
    settings.reach_of_own = [is_host](const char*, size_t) {
      return std::optional(is_host ? Reach::kPinned : Reach::kDevice);
    };
    settings.wake = [] {};
    transport = make_transport(std::move(settings), std::make_unique<Scripted>(wire));
    remote = transport->map({"", 0, kPeerMemory, is_host ? MemoryKind::kPrivateHost : MemoryKind::kDevice},
                            kBytes);
    const auto staging = static_cast<uint32_t>(has_messages ? chunks : 0);
    transport->connect(encode(Address{kPeerChunks, chunk_bytes, staging, "scripted"}));
  }
  ~End() {
    transport.reset();
    for (aclrtStream stream : streams) aclrtDestroyStreamForce(stream);
  }
  End(const End&) = delete;
  End& operator=(const End&) = delete;

  aclrtStream stream() {
    DATADIST_ACL(acl::set_device(0));
    aclrtStream made = nullptr;
    DATADIST_ACL(aclrtCreateStream(&made));
    streams.push_back(made);
    return made;
  }

  void push(aclrtStream stream, size_t chunk, size_t chunks = 1) {
    CHECK_EQUAL(transport->copy(remote.address + chunk * kChunk, memory.address + chunk * kChunk,
                                chunks * kChunk, stream),
                0);
  }
  // Behind what was queued on the stream; the last of them tells the transport.
  void write_word(aclrtStream stream) {
    CHECK_EQUAL(transport->write_word(remote.address, 7, nullptr, stream), 0);
  }

  // The reason for which the end gave up after it got this.
  std::string refusal_of(std::string text) {
    wire->put(std::move(text));
    CHECK(becomes([&] { return transport->failure().has_value(); }));
    return *transport->failure();
  }

  const std::shared_ptr<Wire> wire = std::make_shared<Wire>();
  const DeviceMemory memory;
  const DeviceMemory page;
  size_t offered = kBytes;  // of the memory, from its start; before the peer says anything
  size_t words_offered = kPageBytes;
  std::atomic<bool> words_back{false};
  std::atomic<uint64_t> last_word{0};
  std::unique_ptr<Transport> transport;
  Mapped remote;
  std::vector<aclrtStream> streams;
};

inline Message ranges(Message::Kind kind, uint32_t chunk, std::vector<Range> named) {
  return {kind, chunk, std::move(named), {}};
}

inline uint64_t address_of(const DeviceMemory& memory) { return reinterpret_cast<uint64_t>(memory.address); }

}  // namespace datadist::scripted
