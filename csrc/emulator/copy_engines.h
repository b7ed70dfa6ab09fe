#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <memory>
#include <mutex>

namespace emu {

// The copy engines of the emulated device beside the one that each stream's worker is: threads that take
// parts of a long copy, shared by all streams. They help who finds them idle; nobody waits for one to become
// so, and the caller moves whatever no engine takes. Callers and helpers together are at most one for each
// core.
//
//   state of an engine   who changes it            to
//   idle                 a caller                  claimed
//   claimed              that caller               given: the work is there to be seen
//   given                the engine                working
//                        that caller, at the end   idle: it had not begun, and does not look at the work
//                        again
//   working              the engine                idle, when no part is left
class CopyEngines {
 public:
  static constexpr size_t kMost = 3;  // more do not make memory any faster

  // Does part number `part` of `work`; of several threads at a time, each with other parts.
  using DoPart = void (*)(const void* work, size_t part);

  CopyEngines();                       // as many as this machine has cores to spare, within reason
  explicit CopyEngines(size_t count);  // as many as asked for, up to kMost
  ~CopyEngines();

  // Does all parts, and returns when the last of them is done: the bytes are there for whoever learns of it
  // from this thread. `wakes`: engines that sleep are asked, too, which costs a system call each.
  void run(size_t parts, DoPart do_part, const void* work, bool wakes);

  size_t count() const { return count_; }
  uint64_t parts_of_helpers() const { return parts_of_helpers_.load(std::memory_order_relaxed); }

 private:
  struct Work;
  class Engine;

  size_t start();
  bool rests() const;

  const size_t count_;
  std::once_flag once_;
  std::array<std::unique_ptr<Engine>, kMost> engines_;
  std::atomic<size_t> started_{0};
  std::atomic<size_t> callers_{0};
  std::atomic<uint64_t> parts_of_helpers_{0};
  std::atomic<int64_t> rests_until_{0};  // copies go without help
};

}  // namespace emu
