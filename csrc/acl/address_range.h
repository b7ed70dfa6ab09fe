// How far device memory reaches.
#pragma once

#include <cstddef>
#include <optional>

namespace datadist::acl {

// How many bytes from there on are device memory of one or several mappings without a gap, at most `wanted`;
// nullopt where the runtime cannot tell.
std::optional<size_t> mapped_bytes(const char* address, size_t wanted);

}  // namespace datadist::acl
