#pragma once

#include "emulator/copy.h"

namespace emu {

// What a copy call does, whatever its form: one copy, rows, or a batch of copies.

// In words, for messages.
const char* word(Where where);

// One row of `count` bytes; false when there is nothing to do.
bool make_row(Copy& copy, const char* call, void* dst, size_t dest_max, const void* src, size_t count);

// Check that the copy is allowed from the current context, then queue it or move its bytes.
aclError copy_async(Copy copy, aclrtMemcpyKind kind, aclrtStream handle);
aclError copy_sync(Copy copy, aclrtMemcpyKind kind);

}  // namespace emu
