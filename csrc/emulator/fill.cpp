// Memory set to one value: aclrtMemset and aclrtMemsetAsync.

#include <algorithm>
#include <cstring>

#include "emulator/capture.h"
#include "emulator/context.h"
#include "emulator/copy.h"
#include "emulator/device.h"
#include "emulator/entry.h"
#include "emulator/faults.h"
#include "emulator/observer.h"
#include "emulator/runtime.h"
#include "emulator/stream.h"

namespace emu {
namespace {

aclError fill(uintptr_t address, int32_t value, size_t count, const Device& from, std::string& why) {
  Pin target;
  if (const aclError code = pin(address, count, from, target, why); code != ACL_SUCCESS) return code;
  std::memset(target.host, value, count);
  return ACL_SUCCESS;
}

auto facts_of(const char* call, uintptr_t address, int32_t value, size_t count) {
  return [=](TaskFacts& facts) {
    facts.name = call;
    facts.kind = TaskKind::Fill;
    facts.writes.push_back({address, count});
    facts.bytes = count;
    facts.value = uint64_t{0x0101'0101'0101'0101} * static_cast<uint8_t>(value);
  };
}

void check(void* pointer, size_t max_count, size_t count) {
  not_null(pointer, "devPtr");
  if (count > max_count)
    fail(ACL_ERROR_RT_PARAM_INVALID, "count %zu is more than maxCount %zu", count, max_count);
}

void check_words(void* pointer, size_t memory, size_t words) {
  not_null(pointer, "ptr");
  if (reinterpret_cast<uintptr_t>(pointer) % sizeof(uint32_t) != 0) {
    fail(ACL_ERROR_RT_ADDR_UNALIGNED, "ptr %p is not aligned to 4 bytes", pointer);
  }
  if (words == 0 || words > memory / sizeof(uint32_t)) {
    fail(ACL_ERROR_RT_PARAM_INVALID, "N %zu; memSize %zu has room for %zu", words, memory,
         memory / sizeof(uint32_t));
  }
}

aclError fill_words(uintptr_t address, uint32_t value, size_t words, const Device& from, std::string& why) {
  Pin target;
  if (const aclError code = pin(address, words * sizeof value, from, target, why); code != ACL_SUCCESS)
    return code;
  std::fill_n(reinterpret_cast<uint32_t*>(target.host), words, value);
  return ACL_SUCCESS;
}

auto facts_of_words(const char* call, uintptr_t address, uint32_t value, size_t words) {
  return [=](TaskFacts& facts) {
    facts.name = call;
    facts.kind = TaskKind::Fill;
    facts.writes.push_back({address, words * sizeof value});
    facts.bytes = words * sizeof value;
    facts.value = uint64_t{value} << 32 | value;
  };
}

}  // namespace
}  // namespace emu

using namespace emu;

aclError aclrtMemset(void* devPtr, size_t maxCount, int32_t value, size_t count) {
  return ENTER(aclrtMemset, {
    on_memory(Entry::aclrtMemset, devPtr, nullptr, count);
    check(devPtr, maxCount, count);
    Runtime::get().captures->check_unsafe(ACL_ERROR_RT_CAPTURE_MODE_NOT_SUPPORT);
    std::string why;
    const Device& device = Thread::self().context->device;
    const auto address = reinterpret_cast<uintptr_t>(devPtr);
    const HostWork watched(facts_of("aclrtMemset", address, value, count));
    const aclError code = fill(address, value, count, device, why);
    if (code != ACL_SUCCESS) fail(code, "%s", why.c_str());
    return ACL_SUCCESS;
  });
}

aclError aclrtMemsetAsync(void* devPtr, size_t maxCount, int32_t value, size_t count, aclrtStream stream) {
  return ENTER(aclrtMemsetAsync, {
    on_memory(Entry::aclrtMemsetAsync, devPtr, nullptr, count);
    check(devPtr, maxCount, count);
    auto on = Thread::self().context->stream(stream);
    const auto address = reinterpret_cast<uintptr_t>(devPtr);
    if (is_host(locate(address, count))) {
      fail(ACL_ERROR_RT_PARAM_INVALID, "%p is not device memory", devPtr);
    }
    auto body = [address, value, count](Stream& stream) -> aclError {
      std::string why;
      const aclError code = fill(address, value, count, stream.context().device, why);
      if (code != ACL_SUCCESS) stream.explain(std::move(why));
      return code;
    };
    on->submit(make_task("aclrtMemsetAsync", body, facts_of("aclrtMemsetAsync", address, value, count)));
    return ACL_SUCCESS;
  });
}

aclError aclrtMemsetD32(void* ptr, size_t memSize, uint32_t value, size_t N) {
  return ENTER(aclrtMemsetD32, {
    check_words(ptr, memSize, N);
    Runtime::get().captures->check_unsafe(ACL_ERROR_RT_CAPTURE_MODE_NOT_SUPPORT);
    std::string why;
    const Device& device = Thread::self().context->device;
    const auto address = reinterpret_cast<uintptr_t>(ptr);
    const HostWork watched(facts_of_words("aclrtMemsetD32", address, value, N));
    const aclError code = fill_words(address, value, N, device, why);
    if (code != ACL_SUCCESS) fail(code, "%s", why.c_str());
    return ACL_SUCCESS;
  });
}

aclError aclrtMemsetD32Async(void* ptr, size_t memSize, uint32_t value, size_t N, aclrtStream stream) {
  return ENTER(aclrtMemsetD32Async, {
    check_words(ptr, memSize, N);
    auto on = Thread::self().context->stream(stream);
    const auto address = reinterpret_cast<uintptr_t>(ptr);
    auto body = [address, value, N](Stream& stream) -> aclError {
      std::string why;
      const aclError code = fill_words(address, value, N, stream.context().device, why);
      if (code != ACL_SUCCESS) stream.explain(std::move(why));
      return code;
    };
    if (!is_host(locate(address, N * sizeof(uint32_t)))) {
      on->submit(
          make_task("aclrtMemsetD32Async", body, facts_of_words("aclrtMemsetD32Async", address, value, N)));
      return ACL_SUCCESS;
    }
    // Host memory is filled before the call returns, after what the stream had to do.
    Runtime::get().captures->check_unsafe(ACL_ERROR_RT_CAPTURE_MODE_BLOCK_ASYNC);
    on->synchronize(std::nullopt);
    return body(*on);
  });
}
