#include "emulator_hixl/connection.h"

#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>

#include "emulator_hixl/faults.h"
#include "emulator_hixl/server.h"

namespace emu_hixl {
namespace {

bool greet(int socket, std::vector<Region>* regions) {
  const Request hello{kMagic, Request::kHello, 0};
  Reply reply{};
  if (!send_all(socket, &hello, sizeof hello) || !receive_all(socket, &reply, sizeof reply)) return false;
  regions->resize(reply.count);
  if (!receive_all(socket, regions->data(), regions->size() * sizeof(Region))) return false;
  const timeval forever{0, 0};
  setsockopt(socket, SOL_SOCKET, SO_RCVTIMEO, &forever, sizeof forever);
  return true;
}

bool is_within(const std::vector<Region>& regions, uint64_t address, uint64_t bytes) {
  return std::any_of(regions.begin(), regions.end(),
                     [&](const Region& region) { return region.holds(address, bytes); });
}

}  // namespace

hixl::TransferStatus Batch::status() const {
  std::lock_guard lock(mutex_);
  return status_;
}

bool Batch::wait(int timeout_ms) {
  std::unique_lock lock(mutex_);
  return ended_.wait_for(lock, std::chrono::milliseconds(timeout_ms),
                         [this] { return status_ != hixl::TransferStatus::WAITING; });
}

void Batch::end(bool is_well) {
  {
    std::lock_guard lock(mutex_);
    if (status_ != hixl::TransferStatus::WAITING) return;
    status_ = is_well ? hixl::TransferStatus::COMPLETED : hixl::TransferStatus::FAILED;
  }
  ended_.notify_all();
}

std::pair<hixl::Status, std::unique_ptr<Connection>> Connection::make(const EngineName& name, int timeout_ms,
                                                                      std::shared_ptr<const Memory> memory) {
  std::array<int, kChannels> sockets;
  sockets.fill(-1);
  std::vector<Region> regions;
  for (int& socket : sockets) {
    bool timed_out = false;
    socket = connect_to(name, timeout_ms, &timed_out);
    bool is_well = socket >= 0;
    if (is_well && !greet(socket, &regions)) {
      is_well = false;
      timed_out = errno == EAGAIN || errno == EWOULDBLOCK;
    }
    if (is_well) continue;
    const int why = errno;
    for (const int open : sockets) {
      if (open >= 0) close(open);
    }
    if (timed_out)
      return {refuse(hixl::kTimeout, "Connect: no answer from %s:%d in %d ms", name.ip.c_str(), name.port,
                     timeout_ms),
              nullptr};
    return {refuse(hixl::kFailed, "Connect: %s:%d: %s", name.ip.c_str(), name.port, std::strerror(why)),
            nullptr};
  }
  return {hixl::kOk,
          std::unique_ptr<Connection>(new Connection(sockets, std::move(regions), std::move(memory)))};
}

Connection::Connection(std::array<int, kChannels> sockets, std::vector<Region> regions,
                       std::shared_ptr<const Memory> memory)
    : there_(std::move(regions)), here_(memory->regions()), memory_(std::move(memory)) {
  for (size_t i = 0; i < kChannels; ++i) {
    channels_[i].socket = sockets[i];
    channels_[i].thread = std::thread([this, i] { run(channels_[i]); });
  }
}

Connection::~Connection() {
  {
    std::lock_guard lock(mutex_);
    must_stop_ = true;
    for (const Channel& channel : channels_) shutdown(channel.socket, SHUT_RDWR);
  }
  posted_.notify_all();
  for (Channel& channel : channels_) {
    channel.thread.join();
    close(channel.socket);
  }
}

bool Connection::reaches_here(uint64_t address, uint64_t bytes) const {
  return is_within(here_, address, bytes) && memory_->holds(address, bytes);
}

bool Connection::reaches_there(uint64_t address, uint64_t bytes) const {
  return is_within(there_, address, bytes);
}

void Connection::post(std::shared_ptr<Batch> batch) {
  {
    std::lock_guard lock(mutex_);
    channels_[next_++ % kChannels].queue.push_back(std::move(batch));
  }
  posted_.notify_all();
}

void Connection::run(Channel& channel) {
  name_thread();
  std::unique_lock lock(mutex_);
  while (true) {
    posted_.wait(lock, [&] { return must_stop_ || !channel.queue.empty(); });
    if (channel.queue.empty()) return;
    const auto batch = channel.queue.front();
    channel.queue.pop_front();
    const bool is_lost = must_stop_ || is_broken_;
    lock.unlock();
    bool is_well = false;
    if (!is_lost && !move(channel.socket, *batch, &is_well)) is_broken_ = true;
    batch->end(is_well);
    lock.lock();
  }
}

bool Connection::move(int socket, const Batch& batch, bool* is_well) const {
  const bool writes = batch.operation() == hixl::WRITE;
  const auto& descs = batch.descs();
  const Request request{kMagic, writes ? Request::kWrite : Request::kRead,
                        static_cast<uint32_t>(descs.size())};
  std::vector<Range> ranges;
  for (auto desc = descs.rbegin(); desc != descs.rend(); ++desc)
    ranges.push_back({desc->remote_addr, desc->len});
  if (!send_all(socket, &request, sizeof request) ||
      !send_all(socket, ranges.data(), ranges.size() * sizeof(Range)))
    return false;
  Reply reply{};
  if (!writes) {
    if (!receive_all(socket, &reply, sizeof reply)) return false;
    if (reply.status != hixl::kOk) return true;
  }
  for (auto desc = descs.rbegin(); desc != descs.rend(); ++desc) {
    char* const here = memory_->bytes_at(desc->local_addr, desc->len);
    if (here == nullptr) return false;
    if (!(writes ? send_all(socket, here, desc->len) : receive_all(socket, here, desc->len))) return false;
  }
  if (writes && !receive_all(socket, &reply, sizeof reply)) return false;
  *is_well = reply.status == hixl::kOk;
  return true;
}

}  // namespace emu_hixl
