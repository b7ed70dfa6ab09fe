// The passive half of an engine: peers that connected read and write registered memory, and no thread of the
// process that owns it has a part in that. Its threads are named as the device's are, so a frozen host does
// not stop them.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "emulator_hixl/memory.h"
#include "emulator_hixl/wire.h"

namespace emu_hixl {

class Server {
 public:
  Server(int listening, std::shared_ptr<const Memory> memory);
  ~Server();  // ends all connections, joins
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

 private:
  struct Guest {
    int socket;
    std::atomic<bool> is_over{false};
    std::thread thread;
  };

  void accept_guests();
  void serve(Guest& guest) const;
  bool answer_hello(int socket) const;
  // False when the connection is to end.
  bool read_from(int socket, const std::vector<Range>& ranges) const;
  bool write_to(int socket, const std::vector<Range>& ranges) const;
  bool let_pass(uint64_t address, uint64_t moved, size_t wanted, size_t* allowed) const;
  void forget_ended();

  const int listening_;
  const std::shared_ptr<const Memory> memory_;
  std::atomic<bool> must_stop_{false};
  std::mutex mutex_;
  std::vector<std::unique_ptr<Guest>> guests_;
  std::thread thread_;
};

// Of the calling thread, as a debugger and the emulator's host freeze see it.
void name_thread();

}  // namespace emu_hixl
