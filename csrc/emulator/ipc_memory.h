#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "emulator/acl_headers.h"
#include "emulator/block.h"
#include "emulator/ledger.h"
#include "emulator/peer.h"

namespace emu {

class Device;

// This process's own exports.
class Exports {
 public:
  IpcKey add(const Block& block, uint64_t offset, uint64_t size, uint64_t flags);
  void allow(const IpcKey& key, const int32_t* pids, size_t count);
  void close(const IpcKey& key);
  void revoke(const Block& block);  // the memory was freed: all its keys end

 private:
  struct Open {
    uint32_t slot;
    uintptr_t base;
  };

  void make_ledger();
  Ledger::Slot& slot_of(const IpcKey& key);
  void end(uint32_t slot);

  std::mutex mutex_;
  Ledger* ledger_ = nullptr;
  int ledger_fd_ = -1;
  uint32_t next_ = 0;
  std::vector<Open> open_;
};

// An exporting process and its ledger, shared by all imports from it.
class Exporter {
 public:
  explicit Exporter(const IpcKey& key);
  ~Exporter();
  Exporter(const Exporter&) = delete;
  Exporter& operator=(const Exporter&) = delete;

  const Peer peer;
  const Ledger* ledger = nullptr;
};

// One imported range: whether it may still be touched.
class Import {
 public:
  Import(std::shared_ptr<Exporter> exporter, const IpcKey& key, int32_t physical_device)
      : exporter_(std::move(exporter)), key_(key), physical_device_(physical_device) {}

  // The code of a task of device `from` that touches the range, and why.
  aclError check(const Device& from, bool peer_enabled, std::string& why) const;

 private:
  const std::shared_ptr<Exporter> exporter_;
  const IpcKey key_;
  const int32_t physical_device_;
};

class Imports {
 public:
  uintptr_t open(const char* text, const IpcKey& key, Device& device, bool enable_peer);
  bool close(const char* text);  // false when it was not imported

 private:
  struct Open {
    uintptr_t base = 0;
    int references = 0;
  };

  std::shared_ptr<Exporter> exporter(const IpcKey& key);

  std::mutex mutex_;
  std::map<std::string, Open> open_;
  std::map<std::pair<int32_t, uint64_t>, std::weak_ptr<Exporter>> exporters_;
};

}  // namespace emu
