// Compiled once per CANN level; all other objects are shared by the libraries.

#include "emulator/version.h"

namespace emu {

const CannLevel cann_level{EMU_CANN_MAJOR, EMU_CANN_MINOR};

}  // namespace emu
