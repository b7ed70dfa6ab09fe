#pragma once

#include <chrono>
#include <cstdint>

namespace emu {

class Stream;
struct TaskFacts;

// Lazy mode (TORCH_LLM_DATADIST_EMULATE_LAZY=1): a task runs only when somebody needs it, as late as a device
// ever could. What forgot to wait then sees memory as it was before.
//
//   what happens                                     what may run from then on
//   the host waits for a stream, or queries it       what was submitted to it by then
//   the host waits for or queries an event           its stream, up to the record
//   the host waits for a context or device           what was submitted to its streams by then
//   a submit meets a full queue                      what is in that queue
//   a submitted task writes what a peer sees          it, and what is before it in its stream
//   a running task waits for an event                the recording stream, up to the record
//   a running task waits for a word                  each stream with a queued task that writes the word, up
//                                                    to it; also one that is queued while it waits
//   a running task has waited for kGrace, or while   all that was submitted to all streams, again and again
//   a task is queued that writes its word for        while it waits: whoever is to end the wait (a peer, the
//   kGraceForQueued                                  host) may be waiting for any of it itself
//
// A blocking copy needs nothing, as it waits for nothing. Lanes of a replay run as the replay does. What a
// peer sees: copies, fills and value writes into imported memory, value writes into exported memory, records
// of notifies and of IPC events. A peer cannot say that it needs them; and they meet a producer that was not
// waited for at its latest.
namespace lazy {

constexpr auto kGrace = std::chrono::milliseconds(10);
constexpr auto kGraceForQueued = std::chrono::seconds(1);

bool is_on();
bool is_for_peers(const TaskFacts& facts);
// False: no such task is queued. Those of the stream that waits are behind the wait.
bool need_writers_of(uintptr_t word, const Stream& waiting);
void need_everything();

}  // namespace lazy
}  // namespace emu
