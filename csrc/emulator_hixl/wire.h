// What one engine says to another over TCP. Both ends are this library, on machines of one kind.
#pragma once

#include <cstdint>
#include <vector>

#include "hixl_abi/hixl.h"

namespace emu_hixl {

constexpr uint64_t kMagic = 0x316c78696820756d;

// client: Request, then `count` Ranges, then, of a write, the bytes of each.
// server: Reply, then, of a read that is well, the bytes of each; of a hello `count` Regions.
struct Request {
  enum Kind : uint32_t { kHello, kRead, kWrite };
  uint64_t magic = kMagic;
  uint32_t kind;
  uint32_t count;
};

struct Range {
  uint64_t address;  // at the server
  uint64_t bytes;
};

struct Reply {
  uint32_t status;
  uint32_t count;
};

// An address as engines are named: "ip:port", "[v6]:port"; "ip" alone, or a port of 0 or less, has no port.
struct EngineName {
  std::string ip;
  int port = 0;
  static bool parse(const char* text, EngineName* name);
};

// All of them; false when the connection, or the memory, is gone.
bool send_all(int socket, const void* bytes, size_t count);
bool receive_all(int socket, void* bytes, size_t count);

// A socket that listens, or is connected; -1, and errno.
int listen_at(const EngineName& name);
// `timed_out`: nobody answered in time.
int connect_to(const EngineName& name, int timeout_ms, bool* timed_out);

}  // namespace emu_hixl
