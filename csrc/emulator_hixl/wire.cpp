#include "emulator_hixl/wire.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>

namespace emu_hixl {
namespace {

struct Address {
  sockaddr_storage bytes{};
  socklen_t length = 0;
};

bool address_of(const EngineName& name, Address* address) {
  auto* const v4 = reinterpret_cast<sockaddr_in*>(&address->bytes);
  auto* const v6 = reinterpret_cast<sockaddr_in6*>(&address->bytes);
  const auto port = htons(static_cast<uint16_t>(name.port));
  if (inet_pton(AF_INET, name.ip.c_str(), &v4->sin_addr) == 1) {
    v4->sin_family = AF_INET;
    v4->sin_port = port;
    address->length = sizeof *v4;
    return true;
  }
  if (inet_pton(AF_INET6, name.ip.c_str(), &v6->sin6_addr) == 1) {
    v6->sin6_family = AF_INET6;
    v6->sin6_port = port;
    address->length = sizeof *v6;
    return true;
  }
  return false;
}

int new_socket(const Address& address, int flags) {
  return socket(address.bytes.ss_family, SOCK_STREAM | SOCK_CLOEXEC | flags, 0);
}

int closed_with(int file, int why) {
  close(file);
  errno = why;
  return -1;
}

}  // namespace

bool EngineName::parse(const char* text, EngineName* name) {
  if (text == nullptr) return false;
  const std::string all = text;
  size_t port_at = std::string::npos;
  if (!all.empty() && all[0] == '[') {
    const size_t end = all.find(']');
    if (end == std::string::npos) return false;
    name->ip = all.substr(1, end - 1);
    if (end + 1 < all.size()) {
      if (all[end + 1] != ':') return false;
      port_at = end + 2;
    }
  } else {
    const size_t colon = all.find(':');
    const bool is_v6 = colon != std::string::npos && all.find(':', colon + 1) != std::string::npos;
    name->ip = is_v6 ? all : all.substr(0, colon);
    if (!is_v6 && colon != std::string::npos) port_at = colon + 1;
  }
  name->port = 0;
  if (port_at != std::string::npos) {
    char* end = nullptr;
    const long port = std::strtol(all.c_str() + port_at, &end, 10);
    if (port_at == all.size() || *end != '\0' || port > 65535) return false;
    name->port = port < 0 ? 0 : static_cast<int>(port);
  }
  Address address;
  return address_of(*name, &address);
}

bool send_all(int socket, const void* bytes, size_t count) {
  const auto* at = static_cast<const char*>(bytes);
  while (count > 0) {
    const ssize_t sent = send(socket, at, count, MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) continue;
    if (sent <= 0) return false;
    at += sent;
    count -= static_cast<size_t>(sent);
  }
  return true;
}

bool receive_all(int socket, void* bytes, size_t count) {
  auto* at = static_cast<char*>(bytes);
  while (count > 0) {
    const ssize_t got = recv(socket, at, count, 0);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return false;
    at += got;
    count -= static_cast<size_t>(got);
  }
  return true;
}

int listen_at(const EngineName& name) {
  Address address;
  if (!address_of(name, &address)) return -1;
  const int file = new_socket(address, 0);
  if (file < 0) return -1;
  const int on = 1;
  setsockopt(file, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  if (bind(file, reinterpret_cast<sockaddr*>(&address.bytes), address.length) != 0 || listen(file, 1024) != 0)
    return closed_with(file, errno);
  return file;
}

int connect_to(const EngineName& name, int timeout_ms, bool* timed_out) {
  *timed_out = false;
  Address address;
  if (!address_of(name, &address)) return -1;
  const int file = new_socket(address, SOCK_NONBLOCK);
  if (file < 0) return -1;
  if (connect(file, reinterpret_cast<sockaddr*>(&address.bytes), address.length) != 0) {
    if (errno != EINPROGRESS) return closed_with(file, errno);
    pollfd ready{file, POLLOUT, 0};
    const int count = poll(&ready, 1, timeout_ms);
    *timed_out = count == 0;
    int why = ETIMEDOUT;
    socklen_t length = sizeof why;
    if (count > 0) getsockopt(file, SOL_SOCKET, SO_ERROR, &why, &length);
    if (why != 0) return closed_with(file, why);
  }
  fcntl(file, F_SETFL, 0);  // blocking from here on; the greeting has a deadline, what comes after has none
  const timeval patience{timeout_ms / 1000, (timeout_ms % 1000) * 1000};
  setsockopt(file, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
  const int on = 1;
  setsockopt(file, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  return file;
}

}  // namespace emu_hixl
