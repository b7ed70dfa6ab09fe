// Trouble on demand, and what tests count. Plain C, in the emulated libcann_hixl.so only.
#pragma once

#include <cstddef>
#include <cstdint>

#define EMU_HIXL_API extern "C" __attribute__((visibility("default")))

// The nth following call (1: the next) of that method of hixl::Hixl returns `code` and does nothing. nth 0
// disarms. 103900 when there is no such method.
EMU_HIXL_API uint32_t emuHixlFailNext(const char* method, int nth, uint32_t code);

// How often that method was called; -1 when there is none of that name.
EMU_HIXL_API int64_t emuHixlCalls(const char* method);

// Batches that peers send to this process, or fetch from it, stand still once that many bytes of the batch
// have moved; a negative number lets all go on.
EMU_HIXL_API void emuHixlHold(int64_t after_bytes);

// The same for batches with bytes of [address, address + bytes) here, once they have come to them.
EMU_HIXL_API void emuHixlHoldAt(uint64_t address, uint64_t bytes);

// How many batches stand still so.
EMU_HIXL_API int emuHixlHeld();

// Links that one engine can have; 0: the library's own limit.
EMU_HIXL_API void emuHixlLimitLinks(uint32_t links);

// What the last engine of this process was told by that option; NULL where it was not. Until the next call.
EMU_HIXL_API const char* emuHixlOption(const char* key);

// Why the last call of this thread did not return 0.
EMU_HIXL_API const char* emuHixlMessage();

namespace emu_hixl {

// The code that a fault has for this call, or 0. Counts it.
uint32_t enter(const char* method);

// Returns `code` and keeps the reason.
__attribute__((format(printf, 2, 3))) uint32_t refuse(uint32_t code, const char* format, ...);

// How many more bytes, those at `address`, may move now that `moved` have, at least 1 and at most `wanted`;
// waits while a batch is held. 0: `is_over` became true meanwhile.
size_t let_move(uint64_t address, uint64_t moved, size_t wanted, bool (*is_over)(const void*),
                const void* argument);

uint32_t most_links();

void keep_option(const char* key, const char* value);

}  // namespace emu_hixl
