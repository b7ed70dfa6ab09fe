// CANN's HIXL engine behind a C interface. The plugin is built with the new ABI of libstdc++ and CANN with
// the old one: this library is the one place that knows CANN's classes, and it is built with the old one. It
// asks the loader for libcann_hixl.so at run time, so it loads where there is none.
//
// Codes are HIXL's own (csrc/hixl_abi/hixl.h); 0 is well. Every call but a poll is made in the context in
// which the engine was initialized.
#pragma once

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define DATADIST_HIXL_API __attribute__((visibility("default")))

typedef struct DatadistHixl DatadistHixl;

typedef struct DatadistHixlPiece {
  uint64_t local;
  uint64_t remote;
  uint64_t bytes;
} DatadistHixlPiece;

enum { DATADIST_HIXL_WAITING = 0, DATADIST_HIXL_COMPLETED = 1, DATADIST_HIXL_FAILED = 2 };

// Finds the library and what of it is needed, once per process: by its name, then at `otherwise` (may be
// NULL). Returns "", or why it cannot be used.
DATADIST_HIXL_API const char* datadistHixlLoad(const char* otherwise);

// The names it looks for, in the order of its table; NULL past the last.
DATADIST_HIXL_API const char* datadistHixlSymbol(size_t index);

// NULL where it is not loaded.
DATADIST_HIXL_API DatadistHixl* datadistHixlNew(void);
// Finalizes. Not while any other call is under way.
DATADIST_HIXL_API void datadistHixlDelete(DatadistHixl* engine);

// `options`: key, value, key, value …
DATADIST_HIXL_API uint32_t datadistHixlInitialize(DatadistHixl* engine, const char* name,
                                                  const char* const* options, size_t option_count);
DATADIST_HIXL_API uint32_t datadistHixlRegister(DatadistHixl* engine, uint64_t address, uint64_t bytes,
                                                int on_device, void** handle);
DATADIST_HIXL_API uint32_t datadistHixlDeregister(DatadistHixl* engine, void* handle);
DATADIST_HIXL_API uint32_t datadistHixlConnect(DatadistHixl* engine, const char* remote, int32_t timeout_ms);
DATADIST_HIXL_API uint32_t datadistHixlDisconnect(DatadistHixl* engine, const char* remote,
                                                  int32_t timeout_ms);
// Starts one batch: into the remote's memory if `writes`, else out of it. Pieces have no order.
DATADIST_HIXL_API uint32_t datadistHixlPost(DatadistHixl* engine, const char* remote, int writes,
                                            const DatadistHixlPiece* pieces, size_t count, void** request);
// How far it is. Once this said anything but WAITING, or did not return 0, the request is gone.
DATADIST_HIXL_API uint32_t datadistHixlPoll(DatadistHixl* engine, void* request, int* status);

#ifdef __cplusplus
}  // extern "C"
#endif
