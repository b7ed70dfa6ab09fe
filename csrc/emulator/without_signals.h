#pragma once

#include <csignal>

namespace emu {

// Threads that are started meanwhile get no signals of the program's: the device's threads go on while those
// of a frozen host cannot take one, and whoever takes it there does not wake the program's main thread. What
// a thread brings upon itself, like a fault, still reaches its handlers.
class WithoutSignals {
 public:
  WithoutSignals() {
    sigset_t all;
    sigfillset(&all);
    for (const int own : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGABRT, SIGSYS}) sigdelset(&all, own);
    pthread_sigmask(SIG_BLOCK, &all, &before_);
  }
  ~WithoutSignals() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  WithoutSignals(const WithoutSignals&) = delete;
  WithoutSignals& operator=(const WithoutSignals&) = delete;

 private:
  sigset_t before_;
};

}  // namespace emu
