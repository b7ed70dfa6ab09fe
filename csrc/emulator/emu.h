#pragma once

// What the emulated runtime offers beside the ACL functions: the way to device bytes for emulated compute,
// and faults and delays for tests. Plain C, so that it can be reached by dlsym or ctypes in libascendcl.so; a
// real libascendcl.so has none of it.

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define EMU_API __attribute__((visibility("default")))

// Where this process may touch the byte behind a live device address (its own or an imported one); NULL for
// any other address. Constant time. The result stays valid until the allocation is freed.
EMU_API void* emuHostAlias(const void* device_address);

// Arms faults given as text, in the words of TORCH_LLM_DATADIST_EMULATE_FAULTS (see
// torch_llm_datadist/emulator/faults.py). 100000 when something is wrong with it, and then nothing of it is
// armed; aclGetRecentErrMsg says what.
EMU_API int emuFaults(const char* text);

// Disarms everything.
EMU_API void emuClearFaults();

// From now on each task takes this much longer; 0 ends it.
EMU_API void emuSetTaskDelay(uint64_t us);

// Queues a task that takes this long. Returns an aclError, as a submit does.
EMU_API int emuStreamDelay(void* stream, uint64_t us);

// Simulated time (TORCH_LLM_DATADIST_EMULATE_TIME=simulated): the clock of a stream, or (NULL) of the calling
// thread. 207000 when time is real.
EMU_API int emuClockNow(void* stream, uint64_t* ns);
EMU_API int emuClockReset(void);
// A row of the cost table of the emulated product; 100000 when there is no such row.
EMU_API int emuCost(int index, const char** name, double* value, const char** source);

// With random interleaving: a number that stands for all that the stream decided so far. 0 without.
EMU_API uint64_t emuDecisions(void* stream);

enum EmuDirection { EMU_H2D = 0, EMU_D2H = 1, EMU_D2D = 2, EMU_PEER = 3 };

// Copies of that direction take at least size / bandwidth; 0 lifts it. 100000 for an unknown direction.
EMU_API int emuSetBandwidth(int direction, uint64_t bytes_per_s);

// The nth following call (1: the next) of that entry point returns `code` and does nothing. nth 0 disarms.
// 100000 when there is no such entry point.
EMU_API int emuFailNext(const char* function, int nth, int code);

// The nth following copy task that runs on the stream (NULL: on any) fails with `code` and copies nothing.
// One such fault per stream; nth 0 disarms it.
EMU_API int emuFailTask(void* stream, int nth, int code);

// Compute on a stream. `function` runs with `args` in stream order, as a kernel would. `name` is the op's and
// must never go away. `describe` is called before it, on the same thread, only when somebody watches (a
// trace, the race checker): it names with emuReads and emuWrites what the op touches. It may be NULL: nothing
// is known. Legal in a capture; then both are called at each replay. `release` (may be NULL) gets `args` back
// exactly once, on any thread: after the run, when the task is dropped or refused, or with the graph that it
// is part of. Returns an aclError.
typedef struct EmuFacts EmuFacts;
EMU_API int emuLaunchCompute(void* stream, const char* name, void (*function)(void* args),
                             void (*describe)(void* args, EmuFacts* facts), void* args,
                             void (*release)(void* args));
// `rows` pieces of `width` bytes, `pitch` apart. Device addresses, or what emuHostAlias gave for them.
EMU_API void emuReads(EmuFacts* facts, const void* address, size_t width, size_t rows, size_t pitch);
EMU_API void emuWrites(EmuFacts* facts, const void* address, size_t width, size_t rows, size_t pitch);

// Compute by the calling thread itself, between two calls. NULL while nobody watches.
EMU_API void* emuHostComputeBegin(const char* name, void (*describe)(void* args, EmuFacts* facts),
                                  void* args);
EMU_API void emuHostComputeEnd(void* begun);

// Writes what the trace still holds back (TORCH_LLM_DATADIST_EMULATE_TRACE), and tells how many races were
// found. The end of a process does that, too, unless it ends by _exit.
EMU_API void emuFlush(void);

// Races found in this process so far; -1 when TORCH_LLM_DATADIST_EMULATE_RACES did not ask for the check.
EMU_API int64_t emuRaces(void);
// Two origins are reported as a pair once; from now on each pair may be reported once more.
EMU_API void emuForgetRaces(void);
// The text of one of them, from 0, as much as fits; its length.
EMU_API size_t emuRaceReport(int64_t index, char* out, size_t size);

// From inside a host function (aclrtLaunchHostFunc) or of compute: its task ends with `code`, as a kernel
// that failed would. Emulated compute reports that way. 100000 from anywhere else.
EMU_API int emuFailRunningTask(int code);

// The same for copies of one EmuDirection, on any stream.
EMU_API int emuFailCopy(int direction, int nth, int code);

// From now on aclrtValueWrite and aclrtValueWait refuse (0) or take (1) addresses imported from other
// processes; which of the two real devices do is not known yet.
EMU_API void emuLetValuesReachPeers(int allowed);

// How often the entry point was called; -1 when there is no such one.
EMU_API int64_t emuCalls(const char* function);

struct EmuStats {
  uint64_t live_allocations;  // device, imported and pinned together
  uint64_t device_bytes;      // of all devices, in whole pages
  uint64_t live_contexts;
  uint64_t live_streams;  // default streams included
  uint64_t live_events;
  uint64_t tasks_run;
  uint64_t bytes_copied;
  uint64_t words_woken;  // writes of words that found somebody waiting
};

EMU_API void emuStats(struct EmuStats* out);

#ifdef __cplusplus
}  // extern "C"
#endif
