// What the benchmarks compare with: the same pieces copied by one thread, the chain of a transfer made by
// hand, and ops that do nothing. Built by benchmarks/native.py; called through ctypes, the ops through
// torch.ops.
#include <ATen/core/Tensor.h>
#include <acl/acl_rt.h>
#include <torch/library.h>
#include <torch_npu/csrc/core/npu/NPUStream.h>
#include <torch_npu/csrc/framework/OpCommand.h>

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <thread>

namespace {

void check(aclError code, const char* call) {
  if (code == ACL_SUCCESS) return;
  std::fprintf(stderr, "%s returned %d\n", call, code);
  std::abort();
}
#undef CHECK
#define CHECK(call) check((call), #call)

// A transfer made by hand. At the sender an op writes a word on the caller's stream; a second stream, fed by
// a thread, waits for the word, copies to the receiver and writes a word there. At the receiver a third
// stream waits for that, and the host for the third stream.
constexpr size_t kMemory = 2 << 20;  // what is exported: the word, then what arrives
constexpr size_t kKeyBytes = 65;

void* allocate(size_t bytes) {
  void* memory = nullptr;
  CHECK(aclrtMalloc(&memory, bytes, ACL_MEM_MALLOC_HUGE_FIRST));
  CHECK(aclrtMemset(memory, bytes, 0, bytes));
  return memory;
}

class ChainReceiver {
 public:
  explicit ChainReceiver(int device) {
    CHECK(aclrtSetDevice(device));
    CHECK(aclrtCreateStream(&third_));
    memory_ = static_cast<char*>(allocate(kMemory));
  }
  void export_key(char* key) {
    CHECK(aclrtIpcMemGetExportKey(memory_, kMemory, key, kKeyBytes,
                                  ACL_RT_IPC_MEM_EXPORT_FLAG_DISABLE_PID_VALIDATION));
  }
  void wait(uint64_t number) { CHECK(aclrtValueWait(memory_, number, ACL_STREAM_WAIT_VALUE_GEQ, third_)); }
  void synchronize() { CHECK(aclrtSynchronizeStream(third_)); }

 private:
  aclrtStream third_ = nullptr;
  char* memory_ = nullptr;
};

class ChainSender {
 public:
  ChainSender(int device, size_t bytes, const char* key) : bytes_(bytes) {
    CHECK(aclrtSetDevice(device));
    CHECK(aclrtGetCurrentContext(&context_));
    CHECK(aclrtCreateStream(&second_));
    void* there = nullptr;
    CHECK(aclrtIpcMemImportByKey(&there, key, ACL_RT_IPC_MEM_IMPORT_FLAG_ENABLE_PEER_ACCESS));
    there_ = static_cast<char*>(there);
    start_ = allocate(64);
    src_ = allocate(bytes);
    thread_ = std::thread([this, device] { feed(device); });
  }

  void begin() {
    {
      std::lock_guard lock(mutex_);
      ++number_;
    }
    wake_.notify_one();
  }
  void start(aclrtStream caller) {
    at_npu::native::OpCommand::RunOpApiV2("chain_by_hand", [=, number = number_, word = start_]() -> int {
      return aclrtValueWrite(word, number, 0, caller);
    });
  }

 private:
  void feed(int device) {
    CHECK(aclrtSetDevice(device));
    CHECK(aclrtSetCurrentContext(context_));
    for (uint64_t fed = 0;;) {
      {
        std::unique_lock lock(mutex_);
        wake_.wait(lock, [&] { return number_ != fed; });
        fed = number_;
      }
      CHECK(aclrtValueWait(start_, fed, ACL_STREAM_WAIT_VALUE_GEQ, second_));
      CHECK(aclrtMemcpyAsync(there_ + 64, bytes_, src_, bytes_, ACL_MEMCPY_DEVICE_TO_DEVICE, second_));
      CHECK(aclrtValueWrite(there_, fed, 0, second_));
    }
  }

  const size_t bytes_;
  aclrtContext context_ = nullptr;
  aclrtStream second_ = nullptr;
  char* there_ = nullptr;
  void* start_ = nullptr;
  void* src_ = nullptr;
  std::mutex mutex_;
  std::condition_variable wake_;
  uint64_t number_ = 0;
  std::thread thread_;
};

}  // namespace

extern "C" {

// Nanoseconds that one thread takes for these copies, one memcpy each.
int64_t copy_pieces(const uint64_t* dst, const uint64_t* src, size_t count, size_t bytes) {
  const auto started = std::chrono::steady_clock::now();
  for (size_t i = 0; i < count; ++i)
    std::memcpy(reinterpret_cast<void*>(dst[i]), reinterpret_cast<const void*>(src[i]), bytes);
  return (std::chrono::steady_clock::now() - started).count();
}

// Both live until their processes end.
void* chain_receiver(int device, char* key) {
  auto* receiver = new ChainReceiver(device);
  receiver->export_key(key);
  return receiver;
}
void chain_wait(void* receiver, uint64_t number) { static_cast<ChainReceiver*>(receiver)->wait(number); }
void chain_synchronize(void* receiver) { static_cast<ChainReceiver*>(receiver)->synchronize(); }
void* chain_sender(int device, size_t bytes, const char* key) { return new ChainSender(device, bytes, key); }
void chain_begin(void* sender) { static_cast<ChainSender*>(sender)->begin(); }
}

namespace {

// Ops of ours queue a handler each; so do these, and theirs does nothing.
void queue_nothing() {
  at_npu::native::OpCommand::RunOpApiV2("nothing", []() -> int { return 0; });
}

// Starts what `chain_begin` has handed to the thread.
void chain_op(const at::Tensor& status, const at::Tensor&, int64_t, int64_t sender) {
  reinterpret_cast<ChainSender*>(sender)->start(
      c10_npu::getCurrentNPUStream(status.device().index()).stream(false));
}

template <typename... Arguments>
void nothing(Arguments...) {
  queue_nothing();
}

}  // namespace

TORCH_LIBRARY(datadist_bench, m) {
  m.def("chain_op(Tensor(a!) status, Tensor after, int layer, int sender) -> ()");
}

// One that does nothing for each op of ours that is held to a bound. bench_dispatch.py defines them, with the
// schemas of ours.
TORCH_LIBRARY_IMPL(datadist_bench, PrivateUse1, m) {
  using One = const at::Tensor&;
  using Many = at::TensorList;
  using Int = int64_t;
  m.impl("chain_op", &chain_op);
  m.impl("push_layer", &nothing<One, One, Int, Int>);
  m.impl("wait_layer", &nothing<One, One, Int, Int>);
  m.impl("finish", &nothing<One, One, Int>);
  m.impl("push_blocks", &nothing<One, Many, One, One, Int, Int, Int, Int, Int, Int, Int, bool, Int>);
  m.impl("pull_blocks", &nothing<One, Many, One, One, Int, Int, Int, Int, Int, Int, Int, bool, Int, Int>);
  m.impl("push_cache", &nothing<One, Many, One, Int, Int, Int, Int, Int, Int, Int, Int, Int, Int, bool, Int>);
  m.impl("pull_cache",
         &nothing<One, Many, One, Int, Int, Int, Int, Int, Int, Int, Int, Int, Int, bool, Int, Int>);
  m.impl("copy_blocks", &nothing<One, Many, One, One>);
  m.impl("swap_blocks", &nothing<One, Many, Many, One, One>);
  m.impl("copy_cache", &nothing<One, Many, Many, Int, Int, Int, Int>);
}
