// Host memory that peers on this host reach: page-locked memory in a file without a name, which they open
// through /proc and map; and, of any other, the bytes behind /proc/<pid>/mem.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>

#include "transport/transport.h"

namespace datadist::mapped {

// A process as its peers name it: the start time excludes that another one got its pid.
struct ProcessId {
  int pid = 0;
  int64_t start_time = 0;
};

// uint8[bytes] on the CPU, page-locked for `device`, zeroed. Throws LLM_OUT_OF_MEMORY.
at::Tensor allocate_shared_host(int device, size_t bytes);

Exported export_host(const void* address);

// Memory that a peer exported as kSharedHost, mapped and page-locked here.
Mapped map_shared_host(int device, const ProcessId& owner, const Exported& memory, size_t bytes);

// The memory of a peer, as a file. Throws LLM_FEATURE_NOT_ENABLED where this process may not open it.
std::shared_ptr<const int> open_memory_of(const ProcessId& owner);

}  // namespace datadist::mapped
