#include "emulator/ledger.h"

#include <cinttypes>
#include <cstdio>
#include <cstring>

namespace emu {

void IpcKey::print(char* out) const {
  std::snprintf(out, kLength, "emu:%08x:%010" PRIx64 ":%06x:%04x:%08x:%016" PRIx64, pid, started, ledger_fd,
                slot, generation, secret);
  // All 65 bytes travel; the filler keeps them defined.
  const size_t used = std::strlen(out);
  std::memset(out + used, '=', kLength - 1 - used);
  out[kLength - 1] = '\0';
}

bool IpcKey::parse(const char* text, IpcKey& out) {
  const auto fields =
      std::sscanf(text, "emu:%8" SCNx32 ":%10" SCNx64 ":%6" SCNx32 ":%4" SCNx32 ":%8" SCNx32 ":%16" SCNx64,
                  reinterpret_cast<uint32_t*>(&out.pid), &out.started,
                  reinterpret_cast<uint32_t*>(&out.ledger_fd), &out.slot, &out.generation, &out.secret);
  return fields == 6 && strnlen(text, kLength) == kLength - 1 && out.slot < Ledger::kSlots;
}

IpcKey IpcKey::unpack(uint64_t number) {
  IpcKey key;
  key.pid = static_cast<int32_t>(number >> 40);
  key.slot = static_cast<uint32_t>(number >> 28 & (Ledger::kSlots - 1));
  key.generation = static_cast<uint32_t>(number & kPackedGeneration);
  return key;
}

}  // namespace emu
