// The runtime by its C interface, from several threads at a time: what a sanitizer is to watch.
#include <atomic>
#include <thread>
#include <vector>

#include "../check.h"
#include "acl/acl_rt.h"

namespace {

#define OK(call) CHECK_EQUAL(call, 0)

void with_threads(int count, const std::function<void(int)>& body) {
  std::vector<std::thread> threads;
  std::atomic<int> failed{0};
  std::string why;
  std::mutex mutex;
  for (int i = 0; i < count; ++i) {
    threads.emplace_back([&, i] {
      try {
        OK(aclrtSetDevice(i % 2));
        body(i);
        OK(aclrtResetDevice(i % 2));
      } catch (const std::exception& error) {
        std::lock_guard lock(mutex);
        ++failed;
        why = error.what();
      }
    });
  }
  for (auto& thread : threads) thread.join();
  if (failed > 0) throw check::Failure(why);
}

struct Buffer {
  explicit Buffer(size_t bytes) { OK(aclrtMalloc(&address, bytes, ACL_MEM_MALLOC_HUGE_FIRST)); }
  ~Buffer() { aclrtFree(address); }
  void* address = nullptr;
};

TEST(emulator_threads_make_and_end_streams_with_copies_on_them) {
  with_threads(4, [](int) {
    for (int i = 0; i < 20; ++i) {
      // What a stream did that was destroyed by force may still be under way.
      Buffer a(4096);
      Buffer b(4096);
      aclrtStream stream = nullptr;
      OK(aclrtCreateStreamWithConfig(&stream, 0, ACL_STREAM_FAST_LAUNCH));
      OK(aclrtMemsetAsync(a.address, 4096, i, 4096, stream));
      OK(aclrtMemcpyAsync(b.address, 4096, a.address, 4096, ACL_MEMCPY_DEVICE_TO_DEVICE, stream));
      if (i % 2 == 0) OK(aclrtSynchronizeStream(stream));
      OK(i % 3 == 0 ? aclrtDestroyStreamForce(stream) : aclrtDestroyStream(stream));
    }
  });
}

TEST(emulator_threads_order_streams_by_events) {
  with_threads(4, [](int) {
    Buffer a(64);
    aclrtStream first = nullptr;
    aclrtStream second = nullptr;
    OK(aclrtCreateStream(&first));
    OK(aclrtCreateStream(&second));
    for (int i = 0; i < 30; ++i) {
      aclrtEvent event = nullptr;
      OK(aclrtCreateEventExWithFlag(&event, ACL_EVENT_SYNC));
      OK(aclrtMemsetAsync(a.address, 64, i, 64, first));
      OK(aclrtRecordEvent(event, first));
      OK(aclrtStreamWaitEvent(second, event));
      char found[64] = {};
      OK(aclrtSynchronizeEvent(event));
      OK(aclrtSynchronizeStream(second));
      OK(aclrtMemcpy(found, 64, a.address, 64, ACL_MEMCPY_DEVICE_TO_HOST));
      CHECK_EQUAL(found[63], i);
      OK(aclrtDestroyEvent(event));
    }
    OK(aclrtDestroyStream(first));
    OK(aclrtDestroyStream(second));
  });
}

TEST(emulator_threads_wait_for_words_of_one_another) {
  OK(aclrtSetDevice(0));
  Buffer words(4096);
  OK(aclrtMemset(words.address, 4096, 0, 4096));
  const auto word = [&](int i) { return static_cast<char*>(words.address) + 8 * i; };
  constexpr int kRing = 4;
  std::vector<std::thread> threads;
  std::atomic<int> failed{0};
  for (int i = 0; i < kRing; ++i) {
    threads.emplace_back([&, i] {
      aclrtStream stream = nullptr;
      int bad = aclrtSetDevice(0) + aclrtCreateStream(&stream);
      for (uint64_t turn = 1; turn <= 50; ++turn) {
        if (i > 0 || turn > 1)
          bad += aclrtValueWait(word((i + kRing - 1) % kRing), i > 0 ? turn : turn - 1, 0, stream);
        bad += aclrtValueWrite(word(i), turn, 0, stream);
      }
      bad += aclrtSynchronizeStreamWithTimeout(stream, 60'000);
      bad += aclrtDestroyStream(stream);
      failed += bad != 0;
    });
  }
  for (auto& thread : threads) thread.join();
  CHECK_EQUAL(failed.load(), 0);
}

TEST(emulator_threads_run_host_functions_between_copies) {
  with_threads(3, [](int) {
    Buffer device(64);
    aclrtStream stream = nullptr;
    OK(aclrtCreateStream(&stream));
    int calls = 0;
    for (int i = 0; i < 30; ++i) {
      OK(aclrtMemsetAsync(device.address, 64, i, 64, stream));
      OK(aclrtLaunchHostFunc(stream, [](void* p) { ++*static_cast<int*>(p); }, &calls));
    }
    OK(aclrtSynchronizeStream(stream));
    CHECK_EQUAL(calls, 30);
    OK(aclrtDestroyStream(stream));
  });
}

TEST(emulator_threads_allocate_and_free_while_others_look_addresses_up) {
  with_threads(4, [](int) {
    aclrtStream stream = nullptr;
    OK(aclrtCreateStream(&stream));
    for (int i = 0; i < 60; ++i) {
      Buffer small(512 + 64 * i);
      OK(aclrtMemsetAsync(small.address, 512, 1, 512, stream));
      OK(aclrtSynchronizeStream(stream));
    }
    OK(aclrtDestroyStream(stream));
  });
}

TEST(emulator_threads_capture_and_replay_graphs) {
  with_threads(3, [](int) {
    Buffer device(64);
    aclrtStream stream = nullptr;
    OK(aclrtCreateStream(&stream));
    OK(aclmdlRICaptureBegin(stream, ACL_MODEL_RI_CAPTURE_MODE_THREAD_LOCAL));
    for (int i = 0; i < 10; ++i) OK(aclrtMemsetAsync(device.address, 64, i, 64, stream));
    aclmdlRI graph = nullptr;
    OK(aclmdlRICaptureEnd(stream, &graph));
    for (int i = 0; i < 10; ++i) OK(aclmdlRIExecuteAsync(graph, stream));
    OK(aclrtSynchronizeStream(stream));
    char found[64] = {};
    OK(aclrtMemcpy(found, 64, device.address, 64, ACL_MEMCPY_DEVICE_TO_HOST));
    CHECK_EQUAL(found[0], 9);
    OK(aclmdlRIDestroy(graph));
    OK(aclrtDestroyStream(stream));
  });
}

}  // namespace
