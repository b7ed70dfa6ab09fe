// Named ranges (libms_tools_ext): from one place of a stream to another, or between two moments on the host.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>

#include "emulator/emu.h"

namespace emu {

class Stream;

// Who keeps them; null: nobody does, and they cost nothing. Set once, for good. Called on the stream where
// the range ends, or with none by the host.
struct RangeKeeper {
  virtual ~RangeKeeper() = default;
  virtual uint64_t now() = 0;
  virtual void ranged(Stream* stream, const std::string& message, uint64_t began) = 0;
};
inline std::atomic<RangeKeeper*> range_keeper{nullptr};

}  // namespace emu

extern "C" {
// 0: nobody keeps it, or the stream takes nothing.
EMU_API uint64_t emuRangeStart(const char* message, void* stream);
EMU_API void emuRangeEnd(uint64_t id);
}
