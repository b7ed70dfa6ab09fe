#pragma once

namespace emu {

// The CANN release that this library is: it is linked once per level, and shows only the functions that the
// level has (since.txt).
struct CannLevel {
  int major;
  int minor;
};

extern const CannLevel cann_level;

}  // namespace emu
