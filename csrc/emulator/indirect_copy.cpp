// Copies that find their addresses in device memory when they run: aclrtMemcpyAsyncWithDesc and
// aclrtMemcpyAsyncWithOffset. Within one device only.

#include <algorithm>
#include <cstring>
#include <functional>
#include <optional>

#include "emulator/block.h"
#include "emulator/context.h"
#include "emulator/copy.h"
#include "emulator/device.h"
#include "emulator/emu.h"
#include "emulator/entry.h"
#include "emulator/faults.h"
#include "emulator/runtime.h"
#include "emulator/stream.h"

namespace emu {
namespace {

constexpr size_t kMost = size_t{4} << 30;

// What aclrtSetMemcpyDesc leaves in device memory. The magic number tells a description from other bytes.
struct Description {
  static constexpr uint64_t kMagic = 0x637344'7970436D;
  uint64_t magic;
  uint64_t dst;
  uint64_t src;
  uint64_t bytes;
  uint64_t reserved[4];
};

void check_kind(aclrtMemcpyKind kind) {
  if (kind != ACL_MEMCPY_INNER_DEVICE_TO_DEVICE)
    fail(ACL_ERROR_RT_PARAM_INVALID,
         "kind %d; only 6 (INNER_DEVICE_TO_DEVICE) reads its addresses from memory", kind);
}

void check_count(size_t count) {
  if (count == 0 || count > kMost)
    fail(ACL_ERROR_RT_PARAM_INVALID, "count %zu; it is 1 to %zu (4 GiB)", count, kMost);
}

// Device memory of the current device, aligned for the words in it.
uintptr_t check_table(const void* pointer, const char* name, size_t bytes) {
  not_null(pointer, name);
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  if (address % sizeof(uint64_t) != 0)
    fail(ACL_ERROR_RT_ADDR_UNALIGNED, "%s %p is not aligned to 8 bytes", name, pointer);
  const auto block = Runtime::get().memory.find(address);
  const int device = Thread::self().context->device.id;
  if (block == nullptr || block->place != Place::Device || !block->contains(address, bytes) ||
      block->device != device)
    fail(ACL_ERROR_RT_PARAM_INVALID, "%s %p is not live memory of device %d", name, pointer, device);
  return address;
}

// Where the bytes go, read from device memory; nothing, and why, when it cannot be.
using Resolve = std::function<std::optional<Copy>(const Device&, std::string& why)>;

std::optional<uint64_t> word_at(uintptr_t address, const Device& device, std::string& why) {
  Pin word;
  if (pin(address, sizeof(uint64_t), device, word, why, Touch::Read) != ACL_SUCCESS) return std::nullopt;
  uint64_t value = 0;
  std::memcpy(&value, word.host, sizeof value);
  return value;
}

bool lies_on(uintptr_t address, const Device& device) {
  const auto block = Runtime::get().memory.find(address);
  return block != nullptr && block->place == Place::Device && block->import == nullptr &&
         block->device == device.id;
}

class IndirectCopy final : public Task {
 public:
  IndirectCopy(const char* what, const Device& device, Range table, Resolve resolve)
      : Task(what), device_(device), table_(table), resolve_(std::move(resolve)) {}

  aclError run(Stream& stream) override {
    std::string why;
    const aclError code = move_now(stream, why);
    if (code != ACL_SUCCESS) stream.explain(std::move(why));
    return code;
  }
  void describe(TaskFacts& facts) const override {
    std::string why;
    if (const auto copy = resolve_(device_, why)) copy->describe(facts);
    facts.name = what;
    facts.kind = TaskKind::Copy;
    facts.reads.push_back(table_);
  }
  bool is_copy() const override { return true; }

 private:
  aclError move_now(Stream& stream, std::string& why) const {
    const auto copy = resolve_(device_, why);
    if (!copy) return ACL_ERROR_RT_SYS_DMA;
    for (const uintptr_t end : {copy->dst, copy->src}) {
      if (lies_on(end, device_)) continue;
      why = text("0x%zx, read from 0x%zx, is not memory of device %d", end, table_.address, device_.id);
      return ACL_ERROR_RT_SYS_DMA;
    }
    if (is_armed(kCopyFaults)) return Runtime::get().faults->move(*copy, device_, &stream, why);
    return move(*copy, device_, why);
  }

  const Device& device_;
  const Range table_;
  const Resolve resolve_;
};

}  // namespace
}  // namespace emu

using namespace emu;

aclError aclrtGetMemcpyDescSize(aclrtMemcpyKind kind, size_t* descSize) {
  return ENTER(aclrtGetMemcpyDescSize, {
    not_null(descSize, "descSize");
    check_kind(kind);
    *descSize = sizeof(Description);
    return ACL_SUCCESS;
  });
}

aclError aclrtSetMemcpyDesc(void* desc, aclrtMemcpyKind kind, void* srcAddr, void* dstAddr, size_t count,
                            void* config) {
  return ENTER(aclrtSetMemcpyDesc, {
    check_kind(kind);
    const uintptr_t address = check_table(desc, "desc", sizeof(Description));
    not_null(srcAddr, "srcAddr");
    not_null(dstAddr, "dstAddr");
    check_count(count);
    if (config != nullptr) fail(ACL_ERROR_RT_PARAM_INVALID, "config %p; it is reserved, null", config);
    const Description described{.magic = Description::kMagic,
                                .dst = reinterpret_cast<uintptr_t>(dstAddr),
                                .src = reinterpret_cast<uintptr_t>(srcAddr),
                                .bytes = count,
                                .reserved = {}};
    Pin place;
    std::string why;
    const Device& device = Thread::self().context->device;
    if (const aclError code = pin(address, sizeof described, device, place, why); code != ACL_SUCCESS)
      fail(code, "%s", why.c_str());
    std::memcpy(place.host, &described, sizeof described);
    return ACL_SUCCESS;
  });
}

aclError aclrtMemcpyAsyncWithDesc(void* desc, aclrtMemcpyKind kind, aclrtStream stream) {
  return ENTER(aclrtMemcpyAsyncWithDesc, {
    check_kind(kind);
    const uintptr_t address = check_table(desc, "desc", sizeof(Description));
    auto on = Thread::self().context->stream(stream);
    const auto resolve = [address](const Device& device, std::string& why) -> std::optional<Copy> {
      Pin place;
      if (pin(address, sizeof(Description), device, place, why, Touch::Read) != ACL_SUCCESS) return {};
      Description found;
      std::memcpy(&found, place.host, sizeof found);
      if (found.magic != Description::kMagic) {
        why = text("0x%zx holds no description (aclrtSetMemcpyDesc)", address);
        return {};
      }
      return Copy{.dst = found.dst,
                  .src = found.src,
                  .width = found.bytes,
                  .direction = Direction::D2D,
                  .call = "aclrtMemcpyAsyncWithDesc"};
    };
    on->submit(std::make_shared<IndirectCopy>("aclrtMemcpyAsyncWithDesc", on->context().device,
                                              Range{address, sizeof(Description)}, resolve));
    return ACL_SUCCESS;
  });
}

aclError aclrtMemcpyAsyncWithOffset(void** dst, size_t destMax, size_t dstDataOffset, const void** src,
                                    size_t count, size_t srcDataOffset, aclrtMemcpyKind kind,
                                    aclrtStream stream) {
  return ENTER(aclrtMemcpyAsyncWithOffset, {
    check_kind(kind);
    const uintptr_t to = check_table(dst, "dst", sizeof(void*));
    const uintptr_t from = check_table(src, "src", sizeof(void*));
    check_count(count);
    if (count > destMax)
      fail(ACL_ERROR_RT_PARAM_INVALID, "count %zu is more than destMax %zu", count, destMax);
    auto on = Thread::self().context->stream(stream);
    const auto resolve = [=](const Device& device, std::string& why) -> std::optional<Copy> {
      const auto dst_base = word_at(to, device, why);
      const auto src_base = dst_base ? word_at(from, device, why) : std::nullopt;
      if (!src_base) return {};
      return Copy{.dst = *dst_base + dstDataOffset,
                  .src = *src_base + srcDataOffset,
                  .width = count,
                  .direction = Direction::D2D,
                  .call = "aclrtMemcpyAsyncWithOffset"};
    };
    on->submit(std::make_shared<IndirectCopy>("aclrtMemcpyAsyncWithOffset", on->context().device,
                                              Range{to, sizeof(void*)}, resolve));
    return ACL_SUCCESS;
  });
}
