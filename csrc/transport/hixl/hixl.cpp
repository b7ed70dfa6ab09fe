#include "transport/hixl/hixl.h"

#include <ifaddrs.h>
#include <net/if.h>
#include <netdb.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <deque>
#include <map>
#include <sstream>
#include <thread>

#include "acl/check.h"
#include "acl/stream.h"
#include "error.h"
#include "transport/hixl/library.h"
#include "transport/hixl/regions.h"

namespace datadist::hixl {
namespace {

using engine::Piece;
using engine::Progress;
using engine::Way;

constexpr int kPortsTried = 16;
constexpr int kAttemptMs = 1000;  // the longest that the end of an engine waits for its connecting thread
constexpr int kAttempts = 15;
constexpr uint32_t kTimedOut = 103901;
constexpr uint32_t kFailedCode = 503900;

using Address = std::unique_ptr<addrinfo, decltype(&freeaddrinfo)>;

Address parse(const std::string& ip) {
  addrinfo wanted{};
  wanted.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV;
  wanted.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  require(getaddrinfo(ip.c_str(), "0", &wanted, &found) == 0, kParamInvalid, "hixl: '", ip,
          "' is no IP address");
  return {found, freeaddrinfo};
}

// An address of this host that is not the loopback's, if it has one.
std::string own_ip(int family) {
  const std::string loopback = family == AF_INET6 ? "::1" : "127.0.0.1";
  ifaddrs* all = nullptr;
  if (getifaddrs(&all) != 0) return loopback;
  const std::unique_ptr<ifaddrs, decltype(&freeifaddrs)> owned(all, freeifaddrs);
  for (const ifaddrs* one = all; one != nullptr; one = one->ifa_next) {
    if (one->ifa_addr == nullptr || one->ifa_addr->sa_family != family) continue;
    if ((one->ifa_flags & IFF_LOOPBACK) != 0 || (one->ifa_flags & IFF_UP) == 0) continue;
    const socklen_t length = family == AF_INET6 ? sizeof(sockaddr_in6) : sizeof(sockaddr_in);
    char text[NI_MAXHOST];
    if (getnameinfo(one->ifa_addr, length, text, sizeof text, nullptr, 0, NI_NUMERICHOST) != 0) continue;
    if (std::strchr(text, '%') == nullptr) return text;  // else it means something on its own link only
  }
  return loopback;
}

// HIXL wants to be told a port; this one is free at the moment.
int free_port(const std::string& ip) {
  const Address address = parse(ip);
  sockaddr_storage bound{};
  socklen_t length = sizeof bound;
  const int file = socket(address->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const bool is_found = file >= 0 && bind(file, address->ai_addr, address->ai_addrlen) == 0 &&
                        getsockname(file, reinterpret_cast<sockaddr*>(&bound), &length) == 0;
  const int why = errno;
  if (file >= 0) close(file);
  require(is_found, kFailed, "hixl: no port is free at ", ip, ": ", std::strerror(why));
  return ntohs(bound.ss_family == AF_INET6 ? reinterpret_cast<const sockaddr_in6*>(&bound)->sin6_port
                                           : reinterpret_cast<const sockaddr_in*>(&bound)->sin_port);
}

// "ip:port" or "[v6]:port", as HIXL has it.
std::string endpoint(const std::string& ip, int port) {
  return ip.find(':') == std::string::npos ? join(ip, ":", port) : join("[", ip, "]:", port);
}

void check(const char* call, uint32_t code) {
  if (code != 0) throw Error(status_code(code), describe(call, code));
}

class HixlEngine : public engine::Engine {
 public:
  explicit HixlEngine(const engine::Make& about)
      : can_take_back_(!about.is_peer_on_this_host && !about.is_peer_in_this_super_pod) {
    acl::ContextScope restore;
    context_ = std::make_unique<acl::Context>(about.device);
    std::string ip = about.listen_ip;
    if (ip.empty() || ip == "0.0.0.0") ip = own_ip(AF_INET);
    if (ip == "::") ip = own_ip(AF_INET6);
    // Its buffers are for memory that is not registered, and ours all is.
    std::vector<const char*> options{"BufferPool", "0:0"};
    for (const auto& [key, value] : about.options)
      options.insert(options.end(), {key.c_str(), value.c_str()});
    uint32_t code = 0;
    for (int tried = 0; tried < kPortsTried; ++tried) {
      name_ = endpoint(ip, free_port(ip));
      engine_ = library().create();
      require(engine_ != nullptr, kOutOfMemory, "hixl: no memory for an engine");
      code = library().initialize(engine_, name_.c_str(), options.data(), options.size() / 2);
      if (code == 0) return;
      library().destroy(engine_);
      engine_ = nullptr;
      if (code != kFailedCode) break;  // else the port may have been taken meanwhile
    }
    throw Error(status_code(code), join(describe("Initialize", code), ", as ", name_));
  }

  ~HixlEngine() override { take_back(); }

  bool can_take_back() const override { return can_take_back_; }

  // Memory that a device of the same SuperPod, or host, has mapped is its to write for as long as it likes: a
  // key that is void ends only what comes by RDMA.
  bool take_back() override {
    if (engine_ == nullptr) return false;
    must_stop_ = true;
    if (connecting_.joinable()) connecting_.join();
    const InContextIfThere scope(*this);
    // A peer that is gone has no answer to this, and need not have.
    if (is_connected_) library().disconnect(engine_, peer_.c_str(), kAttemptMs);
    for (const auto& [_, handle] : memory_) deregister(handle);
    library().destroy(std::exchange(engine_, nullptr));
    context_.reset();
    return can_take_back_ && !keeps_memory_;
  }

  engine::Limits limits() const override {
    engine::Limits limits;
    limits.reaches_device = true;
    limits.has_messages = false;
    limits.requests = 8;
    return limits;
  }

  // What is said is where it lies, and which one of this engine it is.
  std::string add_memory(char* address, size_t bytes, bool is_device) override {
    const InContext scope(*this);
    const auto at = reinterpret_cast<uint64_t>(address);
    void* handle = nullptr;
    check("RegisterMem", library().register_memory(engine_, at, bytes, is_device ? 1 : 0, &handle));
    memory_[address] = handle;
    here_.add(at, bytes);
    is_behind_ = true;
    return join(++added_, " ", at, " ", bytes);
  }

  void remove_memory(char* address) override {
    const auto found = memory_.find(address);
    if (found == memory_.end()) return;
    const InContextIfThere scope(*this);
    here_.remove(reinterpret_cast<uint64_t>(address));
    deregister(found->second);
    memory_.erase(found);
  }

  void learn_memory(const std::string& said) override {
    uint64_t number = 0;
    uint64_t address = 0;
    uint64_t bytes = 0;
    std::istringstream words(said);
    words >> number >> address >> bytes;
    require(!words.fail() && bytes > 0 && address + bytes > address, kLinkFailed,
            "hixl: the peer announced memory with '", said, "'");
    there_.add(address, bytes);
    is_behind_ = is_behind_ || number > known_there_;
    learned_ = std::max(learned_, number);
  }

  std::string address() override {
    std::string said = join(name_, " ", added_);
    for (const auto& [address, _] : memory_) {
      const auto at = reinterpret_cast<uint64_t>(address);
      said += join(" ", at, " ", here_.bytes_from(at));
    }
    return said;
  }

  void connect(const std::string& peer_address) override {
    std::istringstream words(peer_address);
    words >> peer_ >> learned_;
    uint64_t address = 0;
    uint64_t bytes = 0;
    require(!words.fail() && peer_.find(':') != std::string::npos, kLinkFailed,
            "hixl: the peer's address is '", peer_address, "', expected ip:port and its memory");
    while (words >> address >> bytes) there_.add(address, bytes);
    is_behind_ = true;  // the thread starts with the first request: by then all memory is known
  }

  int64_t post(Way way, const std::vector<Piece>& pieces) override {
    Request request{way == Way::kWrite, cut(pieces, here_, there_), nullptr, false};
    const int64_t number = ++posted_;
    requests_.emplace(number, std::move(request));
    waiting_.push_back(number);
    go_on();
    return number;
  }

  Progress poll(int64_t number) override {
    go_on();
    const auto found = requests_.find(number);
    if (found == requests_.end()) return {Progress::kFailed, "hixl: there is no such request"};
    if (!found->second.is_posted) {
      if (why_not_.empty()) return {};
      forget(number);
      return {Progress::kFailed, why_not_};
    }
    int status = DATADIST_HIXL_WAITING;
    const uint32_t code = library().poll(engine_, found->second.request, &status);
    if (status == DATADIST_HIXL_WAITING) return {};
    requests_.erase(found);
    --under_way_;
    if (status == DATADIST_HIXL_COMPLETED) return {Progress::kDone, ""};
    return {Progress::kFailed, code == 0 ? "hixl: a batch failed: the peer has ended, or took its memory back"
                                         : describe("GetTransferStatus", code)};
  }

  bool cancel(int64_t number) override {
    const auto found = requests_.find(number);
    if (found == requests_.end()) return true;
    if (found->second.is_posted) return poll(number).state != Progress::kUnderWay;
    forget(number);
    return true;
  }

  void send(const std::string&) override {
    throw Error(kFeatureNotEnabled, "hixl: it carries no messages; words go as transfers (207000)");
  }
  std::optional<std::string> receive() override { return std::nullopt; }

 private:
  struct Request {
    bool writes;
    std::vector<DatadistHixlPiece> pieces;
    void* request;
    bool is_posted;
  };

  // Calls are to be made in the context in which the engine was made.
  class InContext {
   public:
    explicit InContext(const HixlEngine& engine) { engine.context_->make_current(); }

   private:
    acl::ContextScope restore_;
  };

  // For what ends: the device may be lost, and what can be ended is.
  class InContextIfThere {
   public:
    explicit InContextIfThere(const HixlEngine& engine) {
      try {
        engine.context_->make_current();
      } catch (const Error&) {
      }
    }

   private:
    acl::ContextScope restore_;
  };

  void deregister(void* handle) {
    if (library().deregister_memory(engine_, handle) != 0) keeps_memory_ = true;
  }

  void forget(int64_t number) {
    requests_.erase(number);
    std::erase(waiting_, number);
  }

  void go_on() {
    if (waiting_.empty() || !why_not_.empty() || is_connecting_.load(std::memory_order_acquire)) return;
    if (connecting_.joinable()) {
      connecting_.join();
      why_not_ = connect_failure_;
      is_connected_ = why_not_.empty();
      if (!is_connected_) return;
    }
    if (is_behind_) {
      if (under_way_ == 0) start_connecting();
      return;
    }
    const InContext scope(*this);
    for (; !waiting_.empty(); waiting_.pop_front()) {
      Request& request = requests_.at(waiting_.front());
      const uint32_t code = library().post(engine_, peer_.c_str(), request.writes ? 1 : 0,
                                           request.pieces.data(), request.pieces.size(), &request.request);
      if (code != 0) {
        why_not_ = describe("TransferAsync", code);
        return;
      }
      request.is_posted = true;
      ++under_way_;
    }
  }

  void start_connecting() {
    is_behind_ = false;
    known_there_ = learned_;
    is_connecting_ = true;
    connecting_ = std::thread([this, is_again = is_connected_] {
      connect_failure_ = try_to_connect(is_again);
      is_connecting_.store(false, std::memory_order_release);
    });
  }

  std::string try_to_connect(bool is_again) {
    try {
      context_->make_current();
    } catch (const Error& error) {
      return error.what();
    }
    if (is_again) library().disconnect(engine_, peer_.c_str(), kAttemptMs);
    uint32_t code = kTimedOut;
    for (int tried = 0; tried < kAttempts && code == kTimedOut && !must_stop_; ++tried)
      code = library().connect(engine_, peer_.c_str(), kAttemptMs);
    return code == 0 ? "" : join(describe("Connect", code), ", to ", peer_);
  }

  const bool can_take_back_;
  bool keeps_memory_ = false;  // it did not let go of some
  std::unique_ptr<acl::Context> context_;
  std::string name_;
  std::string peer_;
  DatadistHixl* engine_ = nullptr;
  std::map<char*, void*> memory_;  // handles
  Regions here_;
  Regions there_;
  uint64_t added_ = 0;        // counts memory of ours
  uint64_t learned_ = 0;      // the latest of the peer's
  uint64_t known_there_ = 0;  // … that the last connect knew
  bool is_behind_ = true;     // memory came since
  bool is_connected_ = false;
  std::string why_not_;  // nothing more goes out
  int64_t posted_ = 0;
  size_t under_way_ = 0;
  std::map<int64_t, Request> requests_;
  std::deque<int64_t> waiting_;  // not posted yet

  std::thread connecting_;
  std::atomic<bool> is_connecting_{false};
  std::atomic<bool> must_stop_{false};
  std::string connect_failure_;  // of the thread, until it is joined
};

}  // namespace

std::string why_not() { return library().why_not; }

std::unique_ptr<engine::Engine> make(const engine::Make& about) {
  return std::make_unique<HixlEngine>(about);
}

}  // namespace datadist::hixl
