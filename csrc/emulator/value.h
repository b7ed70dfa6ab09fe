#pragma once

#include <cstdint>

namespace emu {

// Stores a word that streams (of this and of other processes) may wait on, and wakes them.
void store_word(uint64_t* word, uint64_t value);

// The four modes of aclrtValueWait.
bool value_holds(uint64_t current, uint64_t value, uint32_t mode);

}  // namespace emu
