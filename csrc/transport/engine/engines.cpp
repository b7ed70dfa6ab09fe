#include "transport/engine/engines.h"

#include <algorithm>

#include "transport/engine/loopback.h"
#include "transport/hixl/hixl.h"
#include "transport/nixl/nixl_engine.h"
#include "transport/nixl/symbols.h"

namespace datadist::engine {

const std::vector<Kind>& kinds() {
  static const auto* all = new std::vector<Kind>{
      {"hixl", hixl::why_not, hixl::make, true},
      {"nixl", nixl::why_not, nixl::make_engine, true},
      {"loopback", why_no_loopback, make_loopback, false},
  };
  return *all;
}

const Kind* find_kind(const std::string& name) {
  const auto found =
      std::find_if(kinds().begin(), kinds().end(), [&](const Kind& kind) { return name == kind.name; });
  return found == kinds().end() ? nullptr : &*found;
}

}  // namespace datadist::engine
