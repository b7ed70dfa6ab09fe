#pragma once

#include <sys/types.h>

#include <cstdint>

namespace emu {

// Another process, told apart from a later one with the same number.
class Peer {
 public:
  // When the process was started, in the kernel's ticks; 0 when there is no such process.
  static uint64_t start_time(pid_t pid);
  // Whether the process that was started then still runs. One that was killed does not, buried or not.
  static bool lives(pid_t pid, uint64_t started);

  Peer(pid_t pid, uint64_t started);  // throws 507022 when it is gone
  ~Peer();
  Peer(const Peer&) = delete;
  Peer& operator=(const Peer&) = delete;

  bool alive() const;
  // A descriptor of that process, opened here; -1 with errno.
  int open_fd(int fd) const;

  const pid_t pid;
  const uint64_t started;

 private:
  int pidfd_ = -1;
};

}  // namespace emu
