// Peer memory mapped into this process: IPC keys, made and opened by torch_npu's allocator, which knows both
// normal and expandable segments. Instances of one process share addresses and need no mapping.
#pragma once

#include <memory>

#include "transport/transport.h"

namespace datadist::mapped {

// Device memory of torch's caching allocator, so that one way of exporting serves everything. Contents
// undefined.
DeviceMemory allocate(int device, size_t bytes);

// Exports the whole segment that `address` lies in. Throws LLM_PARAM_INVALID for memory that cannot be
// exported.
Exported export_address(int device, void* address);

std::unique_ptr<Transport> make_transport(int device, int peer_device, bool in_this_process);

}  // namespace datadist::mapped
