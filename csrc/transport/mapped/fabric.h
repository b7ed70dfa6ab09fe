// Device memory whose handle names it in the whole SuperPod (Atlas A3): made by us, since memory of torch's
// allocator is exported otherwise, and a physical handle is exported once. On one host it is shared by the
// same handle.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "transport/transport.h"

namespace datadist::mapped {

// "" where such memory can be made; else what is missing. Tried once per device.
std::string why_no_fabric(int device);

// The number of the device's SuperPod; -1 where it has none.
int64_t super_pod_of(int device);

// Contents undefined. Throws LLM_OUT_OF_MEMORY, or why_no_fabric.
DeviceMemory allocate_fabric(int device, size_t bytes);

// Fabric memory where there is such, else of torch's allocator: for what peers are to reach.
DeviceMemory allocate_for_peers(int device, size_t bytes);

// Of memory that allocate_fabric made; nullopt for any other.
std::optional<Exported> export_fabric(const char* address);
// The segment of it around the address; 0: there is none.
uintptr_t fabric_segment_of(const char* address);

bool is_fabric(const Exported& memory);
// What another process exported so; one mapping of a segment serves all that lies in it.
Mapped map_fabric(int device, const Exported& memory, size_t bytes);

}  // namespace datadist::mapped
