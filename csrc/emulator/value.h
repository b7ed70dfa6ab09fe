#pragma once

#include <cstdint>

namespace emu {

class Block;

// Stores a word that streams (of this and of other processes) may wait on, and wakes them. `address`: the
// word's, in that block.
void store_word(Block& block, uintptr_t address, uint64_t value);

// The four modes of aclrtValueWait.
bool value_holds(uint64_t current, uint64_t value, uint32_t mode);

}  // namespace emu
