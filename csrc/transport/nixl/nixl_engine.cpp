#include "transport/nixl/nixl_engine.h"

#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <map>
#include <random>
#include <set>
#include <sstream>
#include <utility>
#include <vector>

#include "error.h"
#include "transport/nixl/symbols.h"

namespace datadist::nixl {
namespace {

using engine::Limits;
using engine::Piece;
using engine::Progress;
using engine::Way;

constexpr size_t kMessageBytes = 16384;
constexpr uint64_t kMostEarly = 1024;  // messages that are kept for one that has not come yet
constexpr const char* kBackend = "UCX";

void check(Status status, const char* call) {
  require(status == kOk, kFailed, "nixl_capi_", call, " returned ", status);
}

// A handle of NIXL's that one of its functions destroys.
class Owned {
 public:
  explicit Owned(Status (*destroy)(Handle)) : destroy_(destroy) {}
  ~Owned() {
    if (handle_ != nullptr) destroy_(handle_);
  }
  Owned(const Owned&) = delete;
  Owned& operator=(const Owned&) = delete;
  Handle* out() { return &handle_; }
  Handle get() const { return handle_; }

 private:
  Status (*const destroy_)(Handle);
  Handle handle_ = nullptr;
};

// Other agents of the same name, on another host, would be taken for this one.
std::string new_name() {
  std::random_device random;
  const uint64_t number = uint64_t{random()} << 32 | random();
  return join("datadist-", getpid(), "-", std::hex, number);
}

// Not the ways of UCX between processes of one kernel: what one of them has mapped (xpmem), or reaches by its
// address (cma, knem), outlives any key. It looks for them by itself, and two hosts of ours may be containers
// that share more than it takes for a host.
bool is_network_all_that_ucx_may_use() {
  const char* const set = std::getenv("UCX_TLS");
  if (set == nullptr) return true;  // then it is told so
  const std::set<std::string> shared{"all", "sm", "shm", "mm", "xpmem", "knem", "cma"};
  std::string names = set;
  const bool is_of_those_left_out = names.starts_with('^');
  if (is_of_those_left_out) names.erase(0, 1);
  std::istringstream words(names);
  bool names_shared = false, names_all_shared = false;
  for (std::string name; std::getline(words, name, ',');) {
    names_shared = names_shared || shared.contains(name);
    names_all_shared = names_all_shared || name == "sm" || name == "shm";
  }
  return is_of_those_left_out ? names_all_shared : !names.empty() && !names_shared;
}

class NixlEngine : public engine::Engine {
 public:
  explicit NixlEngine(bool is_peer_on_this_host)
      : api_(symbols()),
        name_(new_name()),
        can_take_back_(!is_peer_on_this_host && is_network_all_that_ucx_may_use()),
        backend_(api_.destroy_backend),
        options_(api_.destroy_opt_args) {
    const AgentConfig config;
    check(api_.create_configured_agent(name_.c_str(), &config, &agent_), "create_configured_agent");
    try {
      Owned memory(api_.destroy_mem_list), parameters(api_.destroy_params);
      check(api_.get_plugin_params(agent_, kBackend, memory.out(), parameters.out()), "get_plugin_params");
      // Where it is set in the environment, that counts. A connection whose packets are lost would hold the
      // caller for two minutes.
      const char* const config = is_peer_on_this_host ? "TCP_CONN_NB=y" : "TCP_CONN_NB=y,TLS=^sm";
      check(api_.params_add(parameters.get(), "engine_config", config), "params_add");
      check(api_.create_backend(agent_, kBackend, parameters.get(), backend_.out()), "create_backend");
      check(api_.create_opt_args(options_.out()), "create_opt_args");
      check(api_.opt_args_add_backend(options_.get(), backend_.get()), "opt_args_add_backend");
      check(api_.create_notif_map(&notes_), "create_notif_map");
    } catch (...) {
      api_.destroy_agent(agent_);
      throw;
    }
  }

  ~NixlEngine() override { take_back(); }
  NixlEngine(const NixlEngine&) = delete;
  NixlEngine& operator=(const NixlEngine&) = delete;

  Limits limits() const override {
    Limits limits;
    limits.has_messages = true;
    limits.message_bytes = kMessageBytes - sizeof(uint64_t);
    return limits;
  }

  std::string add_memory(char* address, size_t bytes, bool) override {
    Owned list(api_.destroy_reg_dlist);
    list_memory(&list, address, bytes);
    check(api_.register_mem(agent_, list.get(), options_.get()), "register_mem");
    memory_[address] = bytes;
    void* said = nullptr;
    size_t said_bytes = 0;
    check(api_.get_local_partial_md(agent_, list.get(), &said, &said_bytes, options_.get()),
          "get_local_partial_md");
    return take_text(said, said_bytes);
  }

  void remove_memory(char* address) override {
    const auto found = memory_.find(address);
    if (found == memory_.end()) return;
    deregister(found->first, found->second);
    memory_.erase(found);
  }

  void learn_memory(const std::string& said) override { load_peer(said); }

  std::string address() override {
    void* said = nullptr;
    size_t bytes = 0;
    check(api_.get_local_md(agent_, &said, &bytes), "get_local_md");
    return take_text(said, bytes);
  }

  void connect(const std::string& peer_address) override { peer_ = load_peer(peer_address); }

  int64_t post(Way way, const std::vector<Piece>& pieces) override {
    Owned local(api_.destroy_xfer_dlist), remote(api_.destroy_xfer_dlist);
    check(api_.create_xfer_dlist(kDram, local.out(), false), "create_xfer_dlist");
    check(api_.create_xfer_dlist(kDram, remote.out(), false), "create_xfer_dlist");
    for (const Piece& piece : pieces) {
      check(api_.xfer_dlist_add_desc(local.get(), reinterpret_cast<uintptr_t>(piece.local), piece.bytes, 0),
            "xfer_dlist_add_desc");
      check(api_.xfer_dlist_add_desc(remote.get(), piece.remote, piece.bytes, 0), "xfer_dlist_add_desc");
    }
    Handle request = nullptr;
    check(api_.create_xfer_req(agent_, way == Way::kWrite ? kWrite : kRead, local.get(), remote.get(),
                               peer_.c_str(), &request, options_.get()),
          "create_xfer_req");
    const Status status = api_.post_xfer_req(agent_, request, nullptr);
    if (status != kOk && status != kInProgress) {
      drop(request);
      throw Error(kFailed, join("nixl_capi_post_xfer_req returned ", status));
    }
    requests_[++last_request_] = request;
    return last_request_;
  }

  Progress poll(int64_t request) override {
    const auto found = requests_.find(request);
    require(found != requests_.end(), kFailed, "there is no request ", request);
    const Status status = api_.get_xfer_status(agent_, found->second);
    if (status == kInProgress) return {};
    drop(found->second);
    requests_.erase(found);
    if (status == kOk) return {Progress::kDone, ""};
    return {Progress::kFailed, join("nixl_capi_get_xfer_status returned ", status,
                                    "; the peer has ended, or the way to it is cut")};
  }

  bool cancel(int64_t request) override {
    const auto found = requests_.find(request);
    if (found == requests_.end()) return true;
    // What UCX has handed to a wire cannot be called back, so it ends as it will.
    if (poll(request).state == Progress::kUnderWay) return false;
    return true;
  }

  void send(const std::string& message) override {
    const uint64_t number = ++sent_;
    std::string text(reinterpret_cast<const char*>(&number), sizeof number);
    text += message;
    const Status status = api_.gen_notif(agent_, peer_.c_str(), text.data(), text.size(), options_.get());
    require(status == kOk, kFailed, "nixl_capi_gen_notif returned ", status,
            "; the peer has ended, or the way to it is cut");
  }

  std::optional<std::string> receive() override {
    if (const auto next = next_in_order()) return next;
    api_.notif_map_clear(notes_);
    check(api_.get_notifs(agent_, notes_, nullptr), "get_notifs");
    size_t agents = 0;
    check(api_.notif_map_size(notes_, &agents), "notif_map_size");
    for (size_t i = 0; i < agents; ++i) {
      const char* agent = nullptr;
      check(api_.notif_map_get_agent_at(notes_, i, &agent), "notif_map_get_agent_at");
      if (peer_ != agent) continue;
      size_t count = 0;
      check(api_.notif_map_get_notifs_size(notes_, agent, &count), "notif_map_get_notifs_size");
      for (size_t note = 0; note < count; ++note) {
        const void* data = nullptr;
        size_t bytes = 0;
        check(api_.notif_map_get_notif(notes_, agent, note, &data, &bytes), "notif_map_get_notif");
        keep(static_cast<const char*>(data), bytes);
      }
    }
    return next_in_order();
  }

  bool can_take_back() const override { return can_take_back_; }

  // UCX keeps what is deregistered in a cache, remote key and all, for as long as its context lives, so that
  // the agent has to go, too, and takes the context along. It can close its memory domains, which is what
  // makes keys void, only when nothing is registered with them any more: hence each answer counts. What a
  // network without keys brings (TCP) is copied by the context itself.
  bool take_back() override {
    if (agent_ == nullptr) return false;
    for (const auto& [_, request] : requests_) drop(request);
    if (!peer_.empty()) api_.invalidate_remote_md(agent_, peer_.c_str());
    for (const auto& [address, bytes] : memory_) deregister(address, bytes);
    api_.destroy_notif_map(notes_);
    const bool has_ended = api_.destroy_agent(std::exchange(agent_, nullptr)) == kOk;
    return has_ended && !keeps_memory_ && can_take_back_;
  }

  static std::string take_text(void* said, size_t bytes) {
    std::string text(static_cast<const char*>(said), bytes);
    std::free(said);
    return text;
  }

  void list_memory(Owned* list, char* address, size_t bytes) {
    check(api_.create_reg_dlist(kDram, list->out(), false), "create_reg_dlist");
    check(api_.reg_dlist_add_desc(list->get(), reinterpret_cast<uintptr_t>(address), bytes, 0, nullptr, 0),
          "reg_dlist_add_desc");
  }

  // In ends that cannot fail: what does is remembered.
  void deregister(char* address, size_t bytes) {
    try {
      Owned list(api_.destroy_reg_dlist);
      list_memory(&list, address, bytes);
      check(api_.deregister_mem(agent_, list.get(), options_.get()), "deregister_mem");
    } catch (const Error&) {
      keeps_memory_ = true;
    }
  }

  std::string load_peer(const std::string& said) {
    char* name = nullptr;
    const Status status = api_.load_remote_md(agent_, said.data(), said.size(), &name);
    require(status == kOk && name != nullptr, kLinkFailed, "nixl_capi_load_remote_md returned ", status,
            " for ", said.size(), " bytes");
    std::string text = name;
    std::free(name);
    require(peer_.empty() || peer_ == text, kLinkFailed, "memory of agent ", text, " was announced by ",
            peer_);
    return text;
  }

  void drop(Handle request) {
    if (api_.release_xfer_req(agent_, request) == kOk) api_.destroy_xfer_req(request);
  }

  void keep(const char* data, size_t bytes) {
    uint64_t number = 0;
    require(bytes >= sizeof number && bytes <= kMessageBytes, kFailed, "a message of ", bytes, " bytes came");
    std::memcpy(&number, data, sizeof number);
    require(number > received_ && number <= received_ + kMostEarly, kFailed, "message ", number,
            " came after ", received_);
    early_.emplace(number, std::string(data + sizeof number, bytes - sizeof number));
  }

  std::optional<std::string> next_in_order() {
    const auto first = early_.begin();
    if (first == early_.end() || first->first != received_ + 1) return std::nullopt;
    ++received_;
    std::string text = std::move(first->second);
    early_.erase(first);
    return text;
  }

  const Symbols& api_;
  const std::string name_;
  const bool can_take_back_;
  bool keeps_memory_ = false;  // it did not let go of some
  Handle agent_ = nullptr;
  Owned backend_;
  Owned options_;
  Handle notes_ = nullptr;
  std::string peer_;
  std::map<char*, size_t> memory_;
  std::map<int64_t, Handle> requests_;
  int64_t last_request_ = 0;
  uint64_t sent_ = 0;
  uint64_t received_ = 0;
  std::map<uint64_t, std::string> early_;
};

}  // namespace

std::unique_ptr<engine::Engine> make_engine(const engine::Make& about) {
  return std::make_unique<NixlEngine>(about.is_peer_on_this_host);
}

}  // namespace datadist::nixl
