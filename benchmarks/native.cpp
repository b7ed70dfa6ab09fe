// What the benchmarks compare with: the same pieces copied by one thread, the chain of a transfer made by hand,
// and ops that do nothing. Built by benchmarks/native.py; called through ctypes, the ops through torch.ops.
#include <ATen/core/Tensor.h>
#include <acl/acl_rt.h>
#include <torch/library.h>
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

// An op writes a word on the caller's stream; a second stream, fed by a thread, waits for the word, copies
// and writes another; a third waits for that, and the host for the third.
class Chain {
 public:
  explicit Chain(int device, size_t bytes) : bytes_(bytes) {
    CHECK(aclrtSetDevice(device));
    CHECK(aclrtGetCurrentContext(&context_));
    CHECK(aclrtCreateStream(&second_));
    CHECK(aclrtCreateStream(&third_));
    CHECK(aclrtMalloc(reinterpret_cast<void**>(&words_), 128, ACL_MEM_MALLOC_HUGE_FIRST));
    CHECK(aclrtMemset(words_, 128, 0, 128));
    CHECK(aclrtMalloc(&src_, bytes, ACL_MEM_MALLOC_HUGE_FIRST));
    CHECK(aclrtMalloc(&dst_, bytes, ACL_MEM_MALLOC_HUGE_FIRST));
    thread_ = std::thread([this, device] { feed(device); });
  }

  // Nanoseconds from the call to the flag.
  int64_t run(aclrtStream caller) {
    const uint64_t number = ++number_;
    CHECK(aclrtValueWait(words_ + 64, number, ACL_STREAM_WAIT_VALUE_GEQ, third_));
    const auto started = std::chrono::steady_clock::now();
    {
      std::lock_guard lock(mutex_);
      to_feed_ = number;
    }
    wake_.notify_one();
    at_npu::native::OpCommand::RunOpApiV2("chain_by_hand", [=, word = words_]() -> int {
      return aclrtValueWrite(word, number, 0, caller);
    });
    CHECK(aclrtSynchronizeStream(third_));
    return (std::chrono::steady_clock::now() - started).count();
  }

 private:
  void feed(int device) {
    CHECK(aclrtSetDevice(device));
    CHECK(aclrtSetCurrentContext(context_));
    for (uint64_t fed = 0;;) {
      {
        std::unique_lock lock(mutex_);
        wake_.wait(lock, [&] { return to_feed_ != fed; });
        fed = to_feed_;
      }
      CHECK(aclrtValueWait(words_, fed, ACL_STREAM_WAIT_VALUE_GEQ, second_));
      CHECK(aclrtMemcpyAsync(dst_, bytes_, src_, bytes_, ACL_MEMCPY_DEVICE_TO_DEVICE, second_));
      CHECK(aclrtValueWrite(words_ + 64, fed, 0, second_));
    }
  }

  const size_t bytes_;
  aclrtContext context_ = nullptr;
  aclrtStream second_ = nullptr;
  aclrtStream third_ = nullptr;
  char* words_ = nullptr;
  void* src_ = nullptr;
  void* dst_ = nullptr;
  uint64_t number_ = 0;
  std::mutex mutex_;
  std::condition_variable wake_;
  uint64_t to_feed_ = 0;
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

// Lives until the process ends.
void* chain_create(int device, size_t bytes) { return new Chain(device, bytes); }
int64_t chain_run(void* chain, void* stream) { return static_cast<Chain*>(chain)->run(stream); }
}

namespace {

// Ops of ours queue a handler each; so do these, and theirs does nothing.
void queue_nothing() {
  at_npu::native::OpCommand::RunOpApiV2("nothing", []() -> int { return 0; });
}

void layer_op(const at::Tensor&, const at::Tensor&, int64_t, int64_t) { queue_nothing(); }

void blocks_op(const at::Tensor&, at::TensorList, const at::Tensor&, const at::Tensor&, int64_t, int64_t,
               int64_t, int64_t, int64_t, int64_t, int64_t, bool, int64_t) {
  queue_nothing();
}

}  // namespace

TORCH_LIBRARY(datadist_bench, m) {
  m.def("layer_op(Tensor(a!) status, Tensor after, int layer, int binding) -> ()");
  m.def(
      "blocks_op(Tensor(a!) status, Tensor(b!)[] cache, Tensor src_blocks, Tensor dst_blocks, int link, "
      "int model_id, int src_layer, int dst_layer, int num_layers, int tensors_per_layer, int timeout_ms, "
      "bool hold_stream, int transfer) -> ()");
}

TORCH_LIBRARY_IMPL(datadist_bench, PrivateUse1, m) {
  m.impl("layer_op", &layer_op);
  m.impl("blocks_op", &blocks_op);
}
