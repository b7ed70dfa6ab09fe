#pragma once

#include <cstddef>
#include <cstdint>

namespace emu {

struct TaskFacts;
struct Profile;
enum class Direction : uint8_t;

// What things take on the emulated product, for simulated time. One table; each number says where it is from.
struct CostModel {
  struct Number {
    const char* name;  // with its unit
    double value;
    const char* source;
  };
  enum Index : uint8_t {
    kSubmitCopyUs,   // host time of a call that queues a copy or a fill
    kSubmitOtherUs,  // of any other task
    kTaskUs,         // a task on its stream, before its bytes move
    kKernelUs,       // the same for compute
    kMemoryGBs,      // device memory, read and write together
    kHostToDeviceGBs,
    kDeviceToHostGBs,
    kPeerWriteGBs,
    kPeerReadGBs,
    kSubmitKernelUs,  // host time of what queues a kernel
    kCount
  };

  static const CostModel& of(const Profile& profile);

  uint64_t submit_ns(const TaskFacts& facts) const;
  struct Cost {
    uint64_t fixed_ns = 0;   // before anything moves
    uint64_t moving_ns = 0;  // while its link, or the memory, is its own
  };
  Cost of_task(const TaskFacts& facts, Direction direction, bool reads_peer) const;

  double operator[](Index index) const { return numbers[index].value; }

  const char* name;
  Number numbers[kCount];
};

}  // namespace emu
