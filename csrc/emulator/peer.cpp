#include "emulator/peer.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "emulator/error.h"

namespace emu {

uint64_t Peer::start_time(pid_t pid) {
  char path[64];
  std::snprintf(path, sizeof path, "/proc/%d/stat", pid);
  const int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return 0;
  char line[1024];
  const ssize_t length = read(fd, line, sizeof line - 1);
  close(fd);
  if (length <= 0) return 0;
  line[length] = '\0';
  // The command may hold blanks and brackets; the fields after it are counted from its last bracket.
  const char* at = std::strrchr(line, ')');
  for (int field = 2; at != nullptr && field < 22; ++field) at = std::strchr(at + 1, ' ');
  return at == nullptr ? 0 : std::strtoull(at, nullptr, 10);
}

namespace {

bool has_ended(int pidfd) {
  pollfd ready{pidfd, POLLIN, 0};
  return poll(&ready, 1, 0) != 0;
}

}  // namespace

bool Peer::lives(pid_t pid, uint64_t started) {
  const int pidfd = static_cast<int>(syscall(SYS_pidfd_open, pid, 0));
  const bool same = start_time(pid) == started;
  if (pidfd < 0) return same;
  const bool ended = has_ended(pidfd);
  close(pidfd);
  return same && !ended;
}

Peer::Peer(pid_t pid, uint64_t started) : pid(pid), started(started) {
  pidfd_ = static_cast<int>(syscall(SYS_pidfd_open, pid, 0));
  // Checked after the descriptor is held: from here on the number cannot change its owner unnoticed.
  if (start_time(pid) == started && alive()) return;
  if (pidfd_ >= 0) close(pidfd_);
  fail(ACL_ERROR_RT_IPC_ERROR, "process %d, which exported the memory, is gone", pid);
}

Peer::~Peer() {
  if (pidfd_ >= 0) close(pidfd_);
}

bool Peer::alive() const { return pidfd_ < 0 ? start_time(pid) == started : !has_ended(pidfd_); }

int Peer::open_fd(int fd) const {
  char path[64];
  std::snprintf(path, sizeof path, "/proc/%d/fd/%d", pid, fd);
  return open(path, O_RDWR | O_CLOEXEC);
}

}  // namespace emu
