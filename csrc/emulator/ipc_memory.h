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
class Physical;
class Stack;

// This process's own exports.
class Exports {
 public:
  struct Range {
    uintptr_t owner;  // what the keys end with: an allocation's base, or the physical memory
    int fd;
    uint64_t offset;
    uint64_t size;
    int32_t physical_device;
    ExportKind kind = ExportKind::Memory;
  };

  IpcKey add(const Range& range, bool any_process);
  void allow(const IpcKey& key, const int32_t* pids, size_t count);
  void allow(uintptr_t owner, const int32_t* pids,
             size_t count);  // for all keys of it; throws when it has none
  void close(const IpcKey& key);
  std::vector<std::shared_ptr<const Stack>> open_keys();  // where they were made
  bool has(uintptr_t owner);                              // a key of it is open
  void revoke(uintptr_t owner);                           // the memory was freed: all its keys end

 private:
  struct Open {
    uint32_t slot;
    uintptr_t owner;
    std::shared_ptr<const Stack> made;
  };

  void make_ledger();
  static void allow(Ledger::Slot& slot, const int32_t* pids, size_t count);
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
  // The descriptor of a process's ledger; -1 when it has none.
  static int find_ledger(int32_t pid);

  explicit Exporter(const IpcKey& key);
  ~Exporter();
  Exporter(const Exporter&) = delete;
  Exporter& operator=(const Exporter&) = delete;

  bool alive() const;

  const Peer peer;
  const Ledger* ledger = nullptr;
};

// One imported range: whether it may still be touched.
class Import {
 public:
  // `held`: the importer holds the memory too (physical memory), so the exporter may let go of it.
  Import(std::shared_ptr<Exporter> exporter, const IpcKey& key, int32_t physical_device, bool held)
      : exporter_(std::move(exporter)), key_(key), physical_device_(physical_device), held_(held) {}

  pid_t exporter_pid() const { return exporter_->peer.pid; }
  // The code of a task of device `from` that touches the range, and why.
  aclError check(const Device& from, bool peer_enabled, std::string& why) const;
  aclError check_open(std::string& why) const;   // that alone which does not depend on who touches
  aclError check_alive(std::string& why) const;  // only that the exporting process is there
  bool lies_on(const Device& device) const;

 private:
  const std::shared_ptr<Exporter> exporter_;
  const IpcKey key_;
  const int32_t physical_device_;
  const bool held_;
};

class Imports {
 public:
  struct Opened {
    int fd;  // the caller's from now on
    uint64_t offset;
    uint64_t size;
    int32_t physical_device;
    std::shared_ptr<Import> import;
  };

  // What a key stands for, when it is of that kind and this process may have it.
  Opened open_shared(const IpcKey& key, ExportKind kind);
  uintptr_t open(const char* text, const IpcKey& key, Device& device, bool enable_peer);
  bool close(const char* text);  // false when it was not imported
  std::shared_ptr<Physical> open_physical(const IpcKey& key, Device& device, bool is_fabric);
  // The key behind the number that aclrtMemExportToShareableHandle made.
  static IpcKey key_of(uint64_t shareable);

 private:
  struct Open {
    uintptr_t base = 0;
    int references = 0;
  };

  std::shared_ptr<Exporter> exporter(const IpcKey& key);
  Opened open_locked(const IpcKey& key, ExportKind kind, bool is_fabric = false);

  std::mutex mutex_;
  std::map<std::string, Open> open_;
  std::map<std::pair<int32_t, uint64_t>, std::weak_ptr<Exporter>> exporters_;
};

// The processes that an …InterServer call names. Links between servers are A3's (207000 elsewhere).
std::vector<int32_t> pids_of_servers(const aclrtServerPid* servers, size_t count);

}  // namespace emu
