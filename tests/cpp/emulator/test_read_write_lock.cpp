// The lock that host threads and the device share: writers are alone, and one that waits keeps nobody out.
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <fstream>
#include <iterator>
#include <mutex>
#include <shared_mutex>
#include <string>
#include <thread>
#include <vector>

#include "../check.h"
#include "emulator/read_write_lock.h"

namespace emu {
namespace {

bool sleeps(int thread) {
  std::ifstream stat("/proc/self/task/" + std::to_string(thread) + "/stat");
  const std::string line{std::istreambuf_iterator<char>(stat), {}};
  return line.empty() || line.substr(line.rfind(')') + 2, 1) == "S";  // or it has ended
}

TEST(emulator_locks_keep_writers_alone_and_readers_out_meanwhile) {
  constexpr int kRounds = 3000;
  ReadWriteLock lock;
  int first = 0;
  int second = 0;
  std::atomic<int> torn{0};
  std::vector<std::thread> threads;
  for (int writer = 0; writer < 2; ++writer) {
    threads.emplace_back([&] {
      for (int round = 0; round < kRounds; ++round) {
        const std::unique_lock alone(lock);
        ++first;
        std::this_thread::yield();  // on a busy machine, too, somebody else gets to run here
        ++second;
      }
    });
    threads.emplace_back([&] {
      for (int round = 0; round < kRounds; ++round) {
        const std::shared_lock shared(lock);
        torn += first != second;
      }
    });
  }
  for (auto& thread : threads) thread.join();
  CHECK_EQUAL(torn.load(), 0);
  CHECK_EQUAL(first, 2 * kRounds);
  CHECK_EQUAL(second, 2 * kRounds);
}

TEST(emulator_locks_let_readers_in_while_a_writer_waits) {
  ReadWriteLock lock;
  lock.lock_shared();
  std::atomic<bool> has_it{false};
  std::atomic<int> writer_id{0};
  std::thread writer([&] {
    writer_id.store(gettid());
    lock.lock();
    has_it.store(true);
    lock.unlock();
  });
  while (writer_id.load() == 0 || !sleeps(writer_id.load())) std::this_thread::yield();

  std::atomic<bool> was_in{false};
  std::thread reader([&] {
    lock.lock_shared();
    was_in.store(true);
    lock.unlock_shared();
  });
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (!was_in.load() && std::chrono::steady_clock::now() < deadline) std::this_thread::yield();
  const bool in_time = was_in.load();
  const bool was_alone = has_it.load();

  lock.unlock_shared();
  writer.join();
  reader.join();
  CHECK(in_time);
  CHECK(!was_alone);
  CHECK(has_it.load());
}

}  // namespace
}  // namespace emu
