// Emulated compute: kernels that come from outside (csrc/emulator_aten), with what they read and write.

#include "emulator/context.h"
#include "emulator/emu.h"
#include "emulator/entry.h"
#include "emulator/host_function.h"
#include "emulator/observer.h"
#include "emulator/runtime.h"
#include "emulator/stream.h"

struct EmuFacts {
  emu::TaskFacts& facts;
};

namespace emu {
namespace {

using Function = void (*)(void*);
using Describe = void (*)(void*, EmuFacts*);

class ComputeTask final : public Task {
 public:
  ComputeTask(const char* name, Function function, Describe describe, void* args, Function release)
      : Task(name), function_(function), describe_(describe), release_(release), args_(args) {}
  ~ComputeTask() override {
    if (release_ != nullptr) release_(args_);
  }

  // Kernels of several streams run side by side, unlike host functions.
  aclError run(Stream&) override { return call_host_function(function_, args_); }
  void describe(TaskFacts& facts) const override {
    facts.name = what;
    facts.kind = TaskKind::Compute;
    EmuFacts filled{facts};
    if (describe_ != nullptr) describe_(args_, &filled);
  }
  bool may_be_updated() const override { return true; }
  void read_parameters(aclmdlRITaskParams& out) const override {
    out.type = ACL_MODEL_RI_TASK_KERNEL;
    out.kernelTaskParams = {.funcHandle = reinterpret_cast<void*>(function_),
                            .cfg = nullptr,
                            .args = args_,
                            .isHostArgs = 1,
                            .argsSize = 0,
                            .numBlocks = 1,
                            .rsv = {}};
  }

 private:
  const Function function_;
  const Describe describe_;
  const Function release_;
  void* const args_;
};

// Host memory is left out: who owns it and for how long is not the device's business.
void add(std::vector<Range>& ranges, const void* pointer, size_t width, size_t rows, size_t pitch) {
  const AddressSpace& memory = Runtime::get().memory;
  const uintptr_t address = memory.device_address(reinterpret_cast<uintptr_t>(pointer));
  if (!memory.in_range(Place::Device, address) && !memory.in_range(Place::Imported, address)) return;
  ranges.push_back({address, width, rows, pitch});
}

}  // namespace
}  // namespace emu

using namespace emu;

int emuLaunchCompute(void* stream, const char* name, void (*function)(void*),
                     void (*describe)(void*, EmuFacts*), void* args, void (*release)(void*)) {
  // Made first: it gives the arguments back also when the launch fails.
  auto task = std::make_shared<ComputeTask>(name, function, describe, args, release);
  return ENTER(emuLaunchCompute, {
    not_null(reinterpret_cast<void*>(function), "function");
    not_null(name, "name");
    auto on = Thread::self().context->stream(stream);
    on->submit(std::move(task));
    return ACL_SUCCESS;
  });
}

void emuReads(EmuFacts* facts, const void* address, size_t width, size_t rows, size_t pitch) {
  add(facts->facts.reads, address, width, rows, pitch);
}

void emuWrites(EmuFacts* facts, const void* address, size_t width, size_t rows, size_t pitch) {
  add(facts->facts.writes, address, width, rows, pitch);
}

void* emuHostComputeBegin(const char* name, void (*describe)(void*, EmuFacts*), void* args) {
  if (observer() == nullptr) return nullptr;
  return new HostWork([&](TaskFacts& facts) {
    facts.name = name;
    facts.kind = TaskKind::Compute;
    EmuFacts filled{facts};
    describe(args, &filled);
  });
}

void emuHostComputeEnd(void* begun) { delete static_cast<HostWork*>(begun); }
