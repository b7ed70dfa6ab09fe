#include "emulator/cost_model.h"

#include "emulator/copy.h"
#include "emulator/facts.h"
#include "emulator/profile.h"

namespace emu {
namespace {

// Published: benchmarks/performance.md of HIXL (128 MiB in blocks, one machine). Derived: from those rows, as
// t(block) = task + block / rate through the smallest and the largest block. Assumed: no public figure that
// we know of; a nominal value, to be replaced by a measurement.
constexpr const char* kSubmit = "published: 16 KiB blocks submitted by the host move 2.87 GB/s";
constexpr const char* kTwoCalls = "assumed: a call that prepares and one that launches";
constexpr const char* kNominalLink = "assumed: PCIe 4.0 x16, nominal";

constexpr CostModel kA2{"A2",
                        {{"submit_copy_us", 5.7, kSubmit},
                         {"submit_other_us", 2.0, "assumed"},
                         {"task_us", 1.0, "derived: HCCS writes of 16 KiB at 8.9 GB/s"},
                         {"kernel_us", 5.0, "assumed"},
                         {"memory_GBs", 1600.0, "assumed: nominal for the product"},
                         {"host_to_device_GBs", 31.5, kNominalLink},
                         {"device_to_host_GBs", 31.5, kNominalLink},
                         {"peer_write_GBs", 20.3, "published: HCCS, one machine, writes of 2 MiB"},
                         {"peer_read_GBs", 26.8, "published: HCCS, one machine, reads of 2 MiB"},
                         {"submit_kernel_us", 10.0, kTwoCalls}}};

constexpr CostModel kA3{"A3",
                        {{"submit_copy_us", 5.7, kSubmit},
                         {"submit_other_us", 2.0, "assumed"},
                         {"task_us", 0.8, "derived: HCCS of 16 KiB at 18.0 GB/s"},
                         {"kernel_us", 5.0, "assumed"},
                         {"memory_GBs", 1600.0, "assumed: nominal for one die"},
                         {"host_to_device_GBs", 31.5, kNominalLink},
                         {"device_to_host_GBs", 31.5, kNominalLink},
                         {"peer_write_GBs", 165.0, "published: HCCS, one machine, 2 MiB"},
                         {"peer_read_GBs", 165.0, "published: HCCS, one machine, 2 MiB"},
                         {"submit_kernel_us", 10.0, kTwoCalls}}};

uint64_t ns(double us) { return static_cast<uint64_t>(us * 1000.0 + 0.5); }

uint64_t moving_ns(size_t bytes, double gb_per_s) {
  return static_cast<uint64_t>(static_cast<double>(bytes) / gb_per_s + 0.5);  // 1 GB/s is 1 byte/ns
}

size_t bytes_of(const std::vector<Range>& ranges) {
  size_t bytes = 0;
  for (const Range& range : ranges) bytes += range.width * range.rows;
  return bytes;
}

}  // namespace

const CostModel& CostModel::of(const Profile& profile) {
  return profile.product == Profile::Product::A2 ? kA2 : kA3;
}

uint64_t CostModel::submit_ns(const TaskFacts& facts) const {
  if (facts.kind == TaskKind::Compute) return ns((*this)[kSubmitKernelUs]);
  const bool copies = facts.kind == TaskKind::Copy || facts.kind == TaskKind::Fill;
  return ns((*this)[copies ? kSubmitCopyUs : kSubmitOtherUs]);
}

CostModel::Cost CostModel::of_task(const TaskFacts& facts, Direction direction, bool reads_peer) const {
  const uint64_t task = ns((*this)[kTaskUs]);
  const double memory = (*this)[kMemoryGBs];
  switch (facts.kind) {
    case TaskKind::Copy:
      switch (direction) {
        case Direction::H2D:
          return {task, moving_ns(facts.bytes, (*this)[kHostToDeviceGBs])};
        case Direction::D2H:
          return {task, moving_ns(facts.bytes, (*this)[kDeviceToHostGBs])};
        case Direction::Peer:
          return {task, moving_ns(facts.bytes, (*this)[reads_peer ? kPeerReadGBs : kPeerWriteGBs])};
        default:
          return {task, moving_ns(2 * facts.bytes, memory)};
      }
    case TaskKind::Fill:
      return {task, moving_ns(facts.bytes, memory)};
    case TaskKind::Compute:
      return {ns((*this)[kKernelUs]), moving_ns(bytes_of(facts.reads) + bytes_of(facts.writes), memory)};
    case TaskKind::Delay:
      return {facts.value * 1000, 0};  // microseconds
    case TaskKind::Replay:
      return {};  // its tasks take their time themselves
    default:
      return {task, 0};
  }
}

}  // namespace emu
