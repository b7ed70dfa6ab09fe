#include "transport/engine/loopback.h"

#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <deque>
#include <map>
#include <sstream>
#include <vector>

#include "error.h"

namespace datadist::engine {
namespace {

constexpr size_t kMessageBytes = 32768;
constexpr size_t kPieces = 256;  // of one call; IOV_MAX is 1024

class Loopback : public Engine {
 public:
  Loopback() : socket_(socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)) {
    require(socket_ >= 0, kLinkFailed, "loopback: no socket: ", std::strerror(errno));
    static std::atomic<int> count{0};
    name_ = join("torch_llm_datadist-", getpid(), "-", ++count, "-", reinterpret_cast<uintptr_t>(this));
    const auto [address, bytes] = address_of(name_);
    if (bind(socket_, reinterpret_cast<const sockaddr*>(&address), bytes) == 0) return;
    const int why = errno;
    close(socket_);
    throw Error(kLinkFailed, join("loopback: binding ", name_, " failed: ", std::strerror(why)));
  }
  ~Loopback() override { close(socket_); }
  Loopback(const Loopback&) = delete;
  Loopback& operator=(const Loopback&) = delete;

  Limits limits() const override {
    Limits limits;
    limits.has_messages = true;
    limits.pieces = kPieces;
    limits.message_bytes = kMessageBytes;
    return limits;
  }

  std::string add_memory(char* address, size_t bytes, bool) override {
    memory_[address] = bytes;
    return {};
  }
  void remove_memory(char* address) override { memory_.erase(address); }
  void learn_memory(const std::string&) override {}
  std::string address() override { return join(getpid(), " ", name_); }

  void connect(const std::string& peer_address) override {
    std::istringstream text(peer_address);
    text >> peer_pid_ >> peer_;
    require(!text.fail() && peer_.size() < sizeof(sockaddr_un::sun_path) - 1, kLinkFailed, "loopback: '",
            peer_address, "' is no address");
  }

  int64_t post(Way way, const std::vector<Piece>& pieces) override {
    std::vector<iovec> local, remote;
    size_t bytes = 0;
    for (const Piece& piece : pieces) {
      require(is_known(piece), kFailed, "loopback: ", piece.bytes, " bytes at ",
              static_cast<const void*>(piece.local), " are not registered");
      local.push_back({piece.local, piece.bytes});
      remote.push_back({reinterpret_cast<void*>(piece.remote), piece.bytes});
      bytes += piece.bytes;
    }
    const auto move = way == Way::kWrite ? process_vm_writev : process_vm_readv;
    const ssize_t moved = move(peer_pid_, local.data(), local.size(), remote.data(), remote.size(), 0);
    if (moved == static_cast<ssize_t>(bytes)) {
      outcomes_[++requests_] = "";
    } else {
      outcomes_[++requests_] =
          moved < 0 ? std::strerror(errno) : join(moved, " of ", bytes, " bytes, then the memory ended");
    }
    return requests_;
  }

  Progress poll(int64_t request) override {
    flush();
    const auto outcome = outcomes_.find(request);
    require(outcome != outcomes_.end(), kFailed, "loopback: there is no request ", request);
    const std::string why = outcome->second;
    outcomes_.erase(outcome);
    return {why.empty() ? Progress::kDone : Progress::kFailed, why};
  }

  bool cancel(int64_t request) override {
    outcomes_.erase(request);
    return true;
  }

  void send(const std::string& message) override {
    unsent_.push_back(message);
    flush();
  }

  std::optional<std::string> receive() override {
    flush();
    std::string text(kMessageBytes, '\0');
    sockaddr_un from{};
    socklen_t from_bytes = sizeof from;
    const ssize_t got =
        recvfrom(socket_, text.data(), text.size(), 0, reinterpret_cast<sockaddr*>(&from), &from_bytes);
    if (got < 0) return std::nullopt;
    const auto [peer, peer_bytes] = address_of(peer_);
    if (from_bytes != peer_bytes || std::memcmp(&from, &peer, peer_bytes) != 0)
      return receive();  // a stranger's
    text.resize(static_cast<size_t>(got));
    return text;
  }

 private:
  // A name that begins with a zero byte is of no file.
  static std::pair<sockaddr_un, socklen_t> address_of(const std::string& name) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::memcpy(address.sun_path + 1, name.data(), name.size());
    return {address, static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size())};
  }

  bool is_known(const Piece& piece) const {
    auto range = memory_.upper_bound(piece.local);
    if (range == memory_.begin()) return false;
    --range;
    return piece.local + piece.bytes <= range->first + range->second;
  }

  void flush() {
    const auto [address, bytes] = address_of(peer_);
    for (; !unsent_.empty(); unsent_.pop_front()) {
      const std::string& text = unsent_.front();
      const auto sent = sendto(socket_, text.data(), text.size(), MSG_NOSIGNAL,
                               reinterpret_cast<const sockaddr*>(&address), bytes);
      if (sent >= 0) continue;
      if (errno == EAGAIN || errno == ENOBUFS) return;
      throw Error(kFailed, join("the peer's end is gone: ", std::strerror(errno)));
    }
  }

  const int socket_;
  std::string name_;
  std::string peer_;
  pid_t peer_pid_ = 0;
  std::map<char*, size_t> memory_;
  std::map<int64_t, std::string> outcomes_;
  int64_t requests_ = 0;
  std::deque<std::string> unsent_;
};

}  // namespace

std::string why_no_loopback() { return ""; }

std::unique_ptr<Engine> make_loopback(const Make&) { return std::make_unique<Loopback>(); }

}  // namespace datadist::engine
