#include "emulator/watch/origin.h"

#include <execinfo.h>

#include <cstdlib>

#include "emulator/error.h"

namespace emu::watch {

std::string Origin::text() const {
  std::string out;
  if (stream < 0) {
    out = emu::text("%s by the host, on thread '%s'", name, thread.c_str());
  } else {
    out = emu::text("%s, task %lu of stream %d of device %d, submitted by thread '%s'", name, number, stream,
                    device, thread.c_str());
  }
  if (!notes.empty()) out += "\n" + notes;
  if (frames != nullptr) {
    char** symbols = backtrace_symbols(frames->data(), static_cast<int>(frames->size()));
    for (size_t i = 0; symbols != nullptr && i < frames->size(); ++i) {
      out += emu::text("\n      %s", symbols[i]);
    }
    std::free(static_cast<void*>(symbols));
  }
  return out;
}

}  // namespace emu::watch
