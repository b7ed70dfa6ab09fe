// Several processes, no Python: one in the middle pushes to all others, by layers too, lets them pull what it
// publishes, checks every byte, and goes on when one of them is killed.
//
// smoke [MEMBERS [ROUNDS]]; it runs itself once per member, with the number of a socket.
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include <cstdio>
#include <cstdlib>
#include <thread>

#include "acl/acl.h"
#include "side.h"

namespace datadist {
namespace {

struct Message {
  enum Kind : int32_t { kHolds, kWait, kPull, kEnd } kind = kEnd;
  int64_t block = 0;
  uint64_t seed = 0;
  int64_t ticket = 0;
  int64_t src = 0;
};

class Socket {
 public:
  explicit Socket(int fd) : fd_(fd) {}
  template <typename T>
  void send(const T& value) {
    CHECK(::send(fd_, &value, sizeof value, MSG_NOSIGNAL) == static_cast<ssize_t>(sizeof value));
  }
  template <typename T>
  T receive() {
    T value;
    CHECK(recv(fd_, &value, sizeof value, MSG_WAITALL) == static_cast<ssize_t>(sizeof value));
    return value;
  }

 private:
  const int fd_;
};

int member(int fd, int64_t cluster_id) {
  Socket socket(fd);
  Side side(cluster_id, static_cast<int>(cluster_id) % 8);
  const auto theirs = socket.receive<Introduction>();
  const Introduction mine =
      side.introduce({1, "the middle", theirs.device, theirs.pid, theirs.start_time, false});
  side.meet(mine.link, theirs);
  socket.send(mine);
  const auto waits = side.make_binding();
  while (true) {
    const auto message = socket.receive<Message>();
    switch (message.kind) {
      case Message::kHolds:
        socket.send(side.holds(message.block, message.seed) ? int64_t{1} : int64_t{0});
        break;
      case Message::kWait:
        socket.send(side.wait_layers(*waits, message.ticket));
        break;
      case Message::kPull:
        socket.send(
            side.move(Direction::kPull, mine.link, {message.src}, {message.block}, message.ticket).first);
        break;
      case Message::kEnd:
        waits->close();
        side.instance().close();
        Engine::stop_all();
        aclFinalize();
        return 0;
    }
  }
}

struct Started {
  pid_t pid = 0;
  int fd = -1;
};

Started start(const char* program, int64_t cluster_id) {
  int ends[2];
  CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0);
  const pid_t pid = fork();
  if (pid == 0) {
    const int fd = dup(ends[1]);  // without close-on-exec
    execl(program, program, "member", std::to_string(fd).c_str(), std::to_string(cluster_id).c_str(),
          nullptr);
    _exit(127);
  }
  close(ends[1]);
  return {pid, ends[0]};
}

// What the middle does with one member, on a thread of its own and with blocks of its own.
class Partner {
 public:
  Partner(Side* middle, Started started, int64_t cluster_id)
      : side_(*middle), started_(started), socket_(started.fd), cluster_id_(cluster_id) {
    const int64_t start_time = start_time_of(started.pid);
    const Peer peer{cluster_id,
                    "cluster " + std::to_string(cluster_id),
                    static_cast<int>(cluster_id) % 8,
                    started.pid,
                    start_time,
                    false};
    const Introduction mine = side_.introduce(peer);
    socket_.send(mine);
    link_ = mine.link;
    side_.meet(link_, socket_.receive<Introduction>());
    binding_ = side_.make_binding();
  }

  void round(uint64_t seed) {
    const int64_t own = 4 * (cluster_id_ - 2);
    side_.fill(own, seed);
    CHECK_EQUAL(side_.move(Direction::kPush, link_, {own}, {3}).second, "");
    CHECK_EQUAL(ask({Message::kHolds, 3, seed}), 1);

    const auto task = side_.prepare(link_, {own}, {5});
    socket_.send(Message{Message::kWait, 0, 0, task->ticket()});
    CHECK_EQUAL(side_.send_layers(*binding_, task), int64_t{kSuccess});
    CHECK_EQUAL(socket_.receive<int64_t>(), int64_t{kSuccess});
    CHECK_EQUAL(ask({Message::kHolds, 5, seed}), 1);

    const auto publication = side_.publish(link_);
    CHECK_EQUAL(ask({Message::kPull, 7, 0, publication->ticket(), own}), int64_t{kSuccess});
    CHECK_EQUAL(publication->wait().first, int64_t{kSuccess});
    CHECK_EQUAL(ask({Message::kHolds, 7, seed}), 1);
  }

  void die() {
    kill(started_.pid, SIGKILL);
    int64_t code = kSuccess;
    while (code == kSuccess) {
      try {
        code = side_.move(Direction::kPush, link_, {0}, {0}).first;
      } catch (const Error& error) {
        code = error.code();
      }
    }
    CHECK_EQUAL(code, int64_t{kNotYetLink});
    waitpid(started_.pid, nullptr, 0);
    binding_->close();
  }

  void end() {
    socket_.send(Message{Message::kEnd});
    int status = 0;
    waitpid(started_.pid, &status, 0);
    CHECK_EQUAL(status, 0);
    binding_->close();
  }

 private:
  int64_t ask(const Message& message) {
    socket_.send(message);
    return socket_.receive<int64_t>();
  }

  Side& side_;
  const Started started_;
  Socket socket_;
  const int64_t cluster_id_;
  int64_t link_ = 0;
  std::shared_ptr<Binding> binding_;
};

int middle(const char* program, int members, int rounds) {
  std::vector<Started> started;
  // Before this process has threads.
  for (int i = 0; i < members; ++i) started.push_back(start(program, i + 2));
  Side side(1, 1);
  std::vector<std::unique_ptr<Partner>> partners;
  for (int i = 0; i < members; ++i) partners.push_back(std::make_unique<Partner>(&side, started[i], i + 2));
  std::atomic<int> failed{0};
  const auto with_each = [&](const auto& body) {
    std::vector<std::thread> threads;
    for (auto& partner : partners) {
      threads.emplace_back([&] {
        try {
          body(*partner);
        } catch (const std::exception& error) {
          std::printf("FAILED: %s\n", error.what());
          ++failed;
        }
      });
    }
    for (auto& thread : threads) thread.join();
  };
  with_each([&](Partner& partner) {
    for (int i = 0; i < rounds; ++i) partner.round(static_cast<uint64_t>(i) * 1000 + 1);
    if (&partner == partners.front().get()) partner.die();
  });
  partners.erase(partners.begin());
  with_each([&](Partner& partner) {
    partner.round(77);
    partner.end();
  });
  side.instance().close();
  Engine::stop_all();
  aclFinalize();
  std::printf("%d members, %d rounds, %d failed\n", members, rounds, failed.load());
  return failed == 0 ? 0 : 1;
}

}  // namespace
}  // namespace datadist

int main(int argc, char** argv) {
  if (aclInit(nullptr) != 0) return 1;
  if (argc == 4 && std::string(argv[1]) == "member") {
    return datadist::member(std::atoi(argv[2]), std::atoi(argv[3]));
  }
  const int members = argc > 1 ? std::atoi(argv[1]) : 3;
  return datadist::middle("/proc/self/exe", members, argc > 2 ? std::atoi(argv[2]) : 10);
}
