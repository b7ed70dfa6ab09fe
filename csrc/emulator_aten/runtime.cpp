#include "emulator_aten/runtime.h"

#include <c10/util/Exception.h>
#include <dlfcn.h>

#include <cstdlib>

namespace emu_aten {
namespace {

// libascendcl is a dependency of libtorch_npu, so it is loaded, but not necessarily in the global scope.
void* symbol(const char* name) {
  static void* const library = dlopen("libascendcl.so", RTLD_NOW | RTLD_NOLOAD);
  return library ? dlsym(library, name) : nullptr;
}

template <typename Function>
Function* required(const char* name) {
  void* found = symbol(name);
  TORCH_CHECK(found, "torch_llm_datadist.emulator: ", name,
              " is missing: the libascendcl.so in this process is not the emulator's");
  return reinterpret_cast<Function*>(found);
}

}  // namespace

void* host_twin(const void* device_address) {
  static auto* const find = required<void*(const void*)>("emuHostAlias");
  void* twin = find(device_address);
  TORCH_CHECK(twin, "torch_llm_datadist.emulator: ", device_address,
              " is not live device memory (freed, or never allocated on an NPU)");
  return twin;
}

void fail_running_task() {
  static auto* const fail = required<int(int)>("emuFailRunningTask");
  constexpr int kVectorCoreException = 507035;
  if (fail(kVectorCoreException) != ACL_SUCCESS) std::abort();
}

aclError launch_compute(aclrtStream stream, const char* name, void (*function)(void*), Describe describe,
                        void* args, void (*release)(void*)) {
  static auto* const launch = required<decltype(emuLaunchCompute)>("emuLaunchCompute");
  return launch(stream, name, function, describe, args, release);
}

namespace {

void* begin_host_compute(const char* name, Describe describe, void* args) {
  static auto* const begin = required<decltype(emuHostComputeBegin)>("emuHostComputeBegin");
  return begin(name, describe, args);
}

}  // namespace

HostCompute::HostCompute(const char* name, Describe describe, void* args)
    : begun_(begin_host_compute(name, describe, args)) {}

HostCompute::~HostCompute() {
  static auto* const end = required<decltype(emuHostComputeEnd)>("emuHostComputeEnd");
  if (begun_) end(begun_);
}

NameRange name_read() {
  static auto* const name = required<decltype(emuReads)>("emuReads");
  return name;
}

NameRange name_write() {
  static auto* const name = required<decltype(emuWrites)>("emuWrites");
  return name;
}

aclError delay_stream(aclrtStream stream, uint64_t microseconds) {
  static auto* const delay = required<int(aclrtStream, uint64_t)>("emuStreamDelay");
  return delay(stream, microseconds);
}

}  // namespace emu_aten
