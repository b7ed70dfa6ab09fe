#include "acl/address_range.h"

#include <algorithm>
#include <cstdint>

#include "acl/symbols.h"

namespace datadist::acl {

std::optional<size_t> mapped_bytes(const char* address, size_t wanted) {
  if (symbols().aclrtMemGetAddressRange == nullptr) return std::nullopt;
  size_t found = 0;
  while (found < wanted) {
    const auto at = reinterpret_cast<uintptr_t>(address) + found;
    void* base = nullptr;
    size_t size = 0;
    if (symbols().aclrtMemGetAddressRange(reinterpret_cast<void*>(at), &base, &size) != 0) break;
    const auto begin = reinterpret_cast<uintptr_t>(base);
    if (at < begin || at - begin >= size) break;
    found += size - (at - begin);
  }
  return std::min(found, wanted);
}

}  // namespace datadist::acl
