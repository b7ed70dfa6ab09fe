#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>

namespace emu {

// What a key is for; an importer that mistakes one for another is refused.
enum class ExportKind : uint32_t { Memory, Physical, Notify, Event };

// What a process exported, in memory that importers map: so that an importer sees the white list as it is
// now, and notices at its next task that the exporter took the memory back.
struct Ledger {
  static constexpr const char* kName = "emulated-npu-exports";
  static constexpr uint64_t kMagic = 0x3152'4547'4445'4C45;
  static constexpr uint32_t kSlots = 4096;
  static constexpr uint32_t kMaxPids = 64;

  struct Slot {
    std::atomic<uint32_t> generation;  // odd: in use
    uint32_t any_process;              // 0: only those on the white list
    ExportKind kind;
    uint64_t secret;
    int32_t fd;
    int32_t physical_device;
    uint64_t offset;  // of the exported range in the memfd
    uint64_t size;
    std::atomic<uint32_t> pid_count;
    std::atomic<int32_t> pids[kMaxPids];
  };

  static constexpr size_t kMostHost = 64;

  uint64_t magic;
  uint64_t super_pod;
  char host[kMostHost];
  Slot slots[kSlots];
};

// The text that travels from exporter to importer: 64 characters and a zero.
struct IpcKey {
  int32_t pid = 0;
  uint64_t started = 0;
  int32_t ledger_fd = -1;
  uint32_t slot = 0;
  uint32_t generation = 0;
  uint64_t secret = 0;

  static constexpr size_t kLength = 65;

  void print(char* out) const;
  static bool parse(const char* text, IpcKey& out);

  // As a number: pid, slot and the low bits of the generation.
  static constexpr uint32_t kPackedGeneration = 0x0FFF'FFFF;
  uint64_t packed() const {
    return uint64_t(pid) << 40 | uint64_t{slot} << 28 | (generation & kPackedGeneration);
  }
  static IpcKey unpack(uint64_t number);
};

}  // namespace emu
