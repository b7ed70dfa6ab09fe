// The active half: a link to one remote engine. Batches run side by side over several channels, so none waits
// for another and none is ordered after one; the pieces of a batch run in reverse, since nobody promises
// their order either.
#pragma once

#include <array>
#include <atomic>
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "emulator_hixl/memory.h"
#include "emulator_hixl/wire.h"

namespace emu_hixl {

class Batch {
 public:
  Batch(hixl::TransferOp operation, std::vector<hixl::TransferOpDesc> descs)
      : operation_(operation), descs_(std::move(descs)) {}

  hixl::TransferStatus status() const;
  // False when it did not end in time.
  bool wait(int timeout_ms);
  void end(bool is_well);

  hixl::TransferOp operation() const { return operation_; }
  const std::vector<hixl::TransferOpDesc>& descs() const { return descs_; }

 private:
  const hixl::TransferOp operation_;
  const std::vector<hixl::TransferOpDesc> descs_;
  mutable std::mutex mutex_;
  std::condition_variable ended_;
  hixl::TransferStatus status_ = hixl::TransferStatus::WAITING;
};

class Connection {
 public:
  // Status, and the connection when that is 0.
  static std::pair<hixl::Status, std::unique_ptr<Connection>> make(const EngineName& name, int timeout_ms,
                                                                   std::shared_ptr<const Memory> memory);
  ~Connection();  // what has not ended fails
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  // What either end had registered when this was made: memory that came later is not part of a link.
  bool reaches_here(uint64_t address, uint64_t bytes) const;
  bool reaches_there(uint64_t address, uint64_t bytes) const;
  bool is_broken() const { return is_broken_; }
  void post(std::shared_ptr<Batch> batch);

 private:
  static constexpr size_t kChannels = 2;
  struct Channel {
    int socket = -1;
    std::deque<std::shared_ptr<Batch>> queue;
    std::thread thread;
  };

  Connection(std::array<int, kChannels> sockets, std::vector<Region> regions,
             std::shared_ptr<const Memory> memory);
  void run(Channel& channel);
  // False when the connection is lost.
  bool move(int socket, const Batch& batch, bool* is_well) const;

  const std::vector<Region> there_;
  const std::vector<Region> here_;
  const std::shared_ptr<const Memory> memory_;
  std::mutex mutex_;
  std::condition_variable posted_;
  bool must_stop_ = false;
  std::atomic<bool> is_broken_{false};
  size_t next_ = 0;
  std::array<Channel, kChannels> channels_;
};

}  // namespace emu_hixl
