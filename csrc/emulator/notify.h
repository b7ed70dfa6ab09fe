#pragma once

#include <array>
#include <atomic>
#include <bitset>
#include <cstdint>
#include <memory>
#include <mutex>

#include "emulator/acl_headers.h"
#include "emulator/facts.h"

namespace emu {

class Device;
class Import;
class Stream;

// The bits of all notifies that this process made, in memory that importers map: one word per device and id.
class NotifyPool {
 public:
  static constexpr uint32_t kPerDevice = 8192;

  // Takes an id of the device; throws 207009 when all are in use.
  uint32_t take(const Device& device);
  void give_back(const Device& device, uint32_t id);
  std::atomic<uint32_t>* word(const Device& device, uint32_t id) const;
  int fd() const { return fd_; }
  static uint64_t offset(const Device& device, uint32_t id);

 private:
  struct Ids {
    std::bitset<kPerDevice> used;
    uint32_t next = 0;  // an id is used again as late as possible
  };

  void make();

  std::mutex mutex_;
  int fd_ = -1;
  std::atomic<uint32_t>* words_ = nullptr;
  std::array<std::unique_ptr<Ids>, 64> ids_;
};

// One bit: a record sets it, a wait consumes it. The process that made it waits; importers only record.
class Notify {
 public:
  Notify(Device& device, uint32_t flags);
  // An imported one; takes the descriptor over.
  Notify(Device& device, int fd, uint64_t offset, std::shared_ptr<Import> import, bool peer_enabled);
  ~Notify();
  Notify(const Notify&) = delete;
  Notify& operator=(const Notify&) = delete;

  // Its keys end at once; what is queued keeps the bit.
  void close() const;
  bool is_imported() const { return import != nullptr; }
  void set() const;
  bool consume() const;  // true when it was set
  void clear() const { word->store(0); }

  Device& device;  // of the maker, or the importer's current one
  const uint32_t flags;
  const uint32_t id;
  std::atomic<uint32_t>* const word;
  const std::shared_ptr<Import> import;
  const bool peer_enabled;
  SyncPoint point;  // for those who watch

 private:
  const uint64_t offset_ = 0;  // of an imported word in its memory
};

}  // namespace emu
