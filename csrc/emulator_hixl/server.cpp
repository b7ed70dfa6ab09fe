#include "emulator_hixl/server.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "emulator_hixl/faults.h"

namespace emu_hixl {
namespace {

constexpr size_t kMostRanges = 1 << 20;
constexpr size_t kScratch = 64 << 10;

bool reply(int socket, hixl::Status status, size_t count = 0) {
  const Reply answer{status, static_cast<uint32_t>(count)};
  return send_all(socket, &answer, sizeof answer);
}

}  // namespace

void name_thread() { pthread_setname_np(pthread_self(), "npu-hixl"); }

Server::Server(int listening, std::shared_ptr<const Memory> memory)
    : listening_(listening), memory_(std::move(memory)), thread_([this] { accept_guests(); }) {}

Server::~Server() {
  must_stop_ = true;
  shutdown(listening_, SHUT_RDWR);
  thread_.join();
  close(listening_);
  for (const auto& guest : guests_) {
    shutdown(guest->socket, SHUT_RDWR);
    guest->thread.join();
    close(guest->socket);
  }
}

void Server::forget_ended() {
  std::erase_if(guests_, [](const auto& guest) {
    if (!guest->is_over) return false;
    guest->thread.join();
    close(guest->socket);
    return true;
  });
}

void Server::accept_guests() {
  name_thread();
  while (!must_stop_) {
    const int socket = accept4(listening_, nullptr, nullptr, SOCK_CLOEXEC);
    if (socket < 0 && (errno == EINTR || errno == ECONNABORTED)) continue;
    if (socket < 0) return;
    const int on = 1;
    setsockopt(socket, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    auto guest = std::make_unique<Guest>();
    guest->socket = socket;
    Guest* const served = guest.get();
    guest->thread = std::thread([this, served] {
      name_thread();
      serve(*served);
      shutdown(served->socket, SHUT_RDWR);  // its client learns of the end at once
      served->is_over = true;
    });
    forget_ended();
    guests_.push_back(std::move(guest));
  }
}

void Server::serve(Guest& guest) const {
  Request request;
  while (receive_all(guest.socket, &request, sizeof request)) {
    if (request.magic != kMagic || request.count > kMostRanges) return;
    std::vector<Range> ranges(request.count);
    if (!receive_all(guest.socket, ranges.data(), ranges.size() * sizeof(Range))) return;
    bool goes_on = false;
    if (request.kind == Request::kHello) goes_on = answer_hello(guest.socket);
    if (request.kind == Request::kRead) goes_on = read_from(guest.socket, ranges);
    if (request.kind == Request::kWrite) goes_on = write_to(guest.socket, ranges);
    if (!goes_on) return;
  }
}

bool Server::answer_hello(int socket) const {
  const std::vector<Region> regions = memory_->regions();
  return reply(socket, hixl::kOk, regions.size()) &&
         send_all(socket, regions.data(), regions.size() * sizeof(Region));
}

bool Server::let_pass(uint64_t address, uint64_t moved, size_t wanted, size_t* allowed) const {
  *allowed = let_move(
      address, moved, wanted,
      [](const void* stop) { return static_cast<const std::atomic<bool>*>(stop)->load(); }, &must_stop_);
  return *allowed > 0;
}

bool Server::read_from(int socket, const std::vector<Range>& ranges) const {
  for (const Range& range : ranges) {
    if (memory_->bytes_at(range.address, range.bytes) == nullptr) return reply(socket, hixl::kFailed);
  }
  if (!reply(socket, hixl::kOk)) return false;
  uint64_t moved = 0;
  for (const Range& range : ranges) {
    size_t allowed = 0;
    for (uint64_t done = 0; done < range.bytes; done += allowed, moved += allowed) {
      if (!let_pass(range.address + done, moved, range.bytes - done, &allowed)) return false;
      const char* const from = memory_->bytes_at(range.address + done, allowed);
      if (from == nullptr || !send_all(socket, from, allowed)) return false;
    }
  }
  return true;
}

bool Server::write_to(int socket, const std::vector<Range>& ranges) const {
  hixl::Status status = hixl::kOk;
  uint64_t moved = 0;
  std::vector<char> nowhere;  // for bytes that have no place here: the connection stays in step
  for (const Range& range : ranges) {
    if (memory_->bytes_at(range.address, range.bytes) == nullptr) status = hixl::kFailed;
    size_t allowed = 0;
    for (uint64_t done = 0; done < range.bytes; done += allowed, moved += allowed) {
      if (!let_pass(range.address + done, moved, range.bytes - done, &allowed)) return false;
      char* to = status == hixl::kOk ? memory_->bytes_at(range.address + done, allowed) : nullptr;
      if (to == nullptr) {
        status = hixl::kFailed;
        nowhere.resize(kScratch);
        allowed = std::min(allowed, nowhere.size());
        to = nowhere.data();
      }
      if (!receive_all(socket, to, allowed)) return false;
    }
  }
  return reply(socket, status);
}

}  // namespace emu_hixl
