#include "emulator/leaks.h"

#include <unistd.h>

#include <cstdio>
#include <map>
#include <mutex>
#include <string>

#include "emulator/block.h"
#include "emulator/context.h"
#include "emulator/device.h"
#include "emulator/event.h"
#include "emulator/graph.h"
#include "emulator/ipc_memory.h"
#include "emulator/notify.h"
#include "emulator/runtime.h"
#include "emulator/stack.h"
#include "emulator/stream.h"
#include "emulator/virtual_memory.h"

namespace emu {
namespace {

constexpr const char* kTorchNpu = "libtorch_npu.so";

struct Pile {
  size_t count = 0;
  size_t bytes = 0;
};

// Left-overs of one sort, by who made them.
class Report {
 public:
  void add(const char* sort, const std::shared_ptr<const Stack>& made, size_t bytes) {
    const std::string maker = made == nullptr ? "unknown" : made->maker();
    if (maker == kTorchNpu) {
      grow(torch_[sort], bytes);
      return;
    }
    grow(sorts_[sort], bytes);
    const std::string where = made != nullptr && Stack::is_shown() ? made->text("      ") : "";
    grow(places_[sort][{maker, where}], bytes);
  }

  bool is_clean() const { return sorts_.empty(); }

  std::string text() const {
    std::string out = emu::text("emulated Ascend runtime: process %d did not give back\n", getpid());
    for (const auto& [sort, pile] : sorts_) {
      out += "  " + line(sort, pile) + "\n";
      for (const auto& [place, part] : places_.at(sort)) {
        out += "    " + line("made by " + place.first, part) + "\n" + place.second;
      }
    }
    for (const auto& [sort, pile] : torch_) {
      out += "  (kept by torch_npu for itself, no leak: " + line(sort, pile) + ")\n";
    }
    return out;
  }

 private:
  static void grow(Pile& pile, size_t bytes) {
    ++pile.count;
    pile.bytes += bytes;
  }
  static std::string line(const std::string& what, const Pile& pile) {
    std::string out = emu::text("%s: %zu", what.c_str(), pile.count);
    if (pile.bytes != 0) out += emu::text(", %zu bytes", pile.bytes);
    return out;
  }

  std::map<std::string, Pile> sorts_;
  std::map<std::string, std::map<std::pair<std::string, std::string>, Pile>> places_;
  std::map<std::string, Pile> torch_;
};

const char* sort_of(const Block& block) {
  if (block.physical != nullptr) return "mapped device memory";
  if (block.place == Place::Imported) return "imported device memory";
  return block.place == Place::Pinned ? "pinned host memory" : "device memory";
}

}  // namespace

void report_leaks() {
  Runtime& runtime = Runtime::get();
  if (!runtime.config.leaks) return;
  static std::once_flag once;
  std::call_once(once, [&] {
    Report report;
    for (const auto& block : runtime.memory.all()) report.add(sort_of(*block), block->made, block->size);
    runtime.contexts.each([&](const Context& context, const auto& made) {
      if (!context.primary) report.add("contexts", made, 0);
    });
    runtime.streams.each([&](const Stream& stream, const auto& made) {
      if (!stream.is_default() && !stream.is_owned()) report.add("streams", made, 0);
    });
    runtime.events.each([&](const Event&, const auto& made) { report.add("events", made, 0); });
    runtime.notifies.each([&](const Notify&, const auto& made) { report.add("notifies", made, 0); });
    runtime.graphs.each([&](const Graph&, const auto& made) { report.add("graphs", made, 0); });
    runtime.physicals.each([&](const Physical& physical, const auto& made) {
      report.add("physical memory", made, physical.size);
    });
    for (const auto& made : runtime.exports->open_keys()) report.add("exported IPC keys", made, 0);
    if (!report.is_clean()) std::fputs(report.text().c_str(), stderr);
  });
}

}  // namespace emu
