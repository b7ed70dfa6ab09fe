// Peer memory mapped into this process: fabric handles where the memory is ours (fabric.h), else IPC keys,
// made and opened by torch_npu's allocator, which knows both normal and expandable segments; host memory by
// host_memory.h. Instances of one process share addresses and need no mapping.
#pragma once

#include <memory>
#include <vector>

#include "transport/transport.h"

namespace datadist::mapped {

// Device memory of torch's caching allocator, so that one way of exporting serves everything. Contents
// undefined.
DeviceMemory allocate(int device, size_t bytes);

// Exports the whole segments that the addresses lie in. Throws LLM_PARAM_INVALID for memory that cannot be
// exported. One look at the allocator serves them all: it lists each of its blocks.
std::vector<Exported> export_addresses(int device, const std::vector<char*>& addresses);

// What peers on this host get to know of memory of one kind: on the device, or all on the host.
std::vector<Exported> export_on_this_host(int device, const std::vector<OwnMemory>& memory);

// The address of the memory around each that stays mapped as long as its tensor lives: of the allocator's
// segment, of an expandable one the tensor's own block. 0: not its memory. Throws LLM_PARAM_INVALID for
// memory that reaches beyond its allocation.
std::vector<uintptr_t> slabs_of(int device, const std::vector<OwnMemory>& memory);

struct PeerProcess {
  int device = 0;
  int pid = 0;
  int64_t start_time = 0;
  bool in_this_process = false;
  bool is_on_this_host = true;  // else only fabric memory is reached
};

std::unique_ptr<Transport> make_transport(int device, PeerProcess peer);

}  // namespace datadist::mapped
