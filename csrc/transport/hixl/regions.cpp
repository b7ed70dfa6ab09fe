#include "transport/hixl/regions.h"

#include <algorithm>

#include "error.h"

namespace datadist::hixl {

uint64_t Regions::bytes_from(uint64_t address) const {
  uint64_t most = 0;
  // A cache may be a view into another one that was registered, too, so the nearest need not be the longest.
  for (auto region = regions_.upper_bound(address); region != regions_.begin();) {
    --region;
    const uint64_t offset = address - region->first;
    if (offset < region->second) most = std::max(most, region->second - offset);
    if (most > 0) break;
  }
  return most;
}

std::vector<DatadistHixlPiece> cut(const std::vector<engine::Piece>& pieces, const Regions& here,
                                   const Regions& there) {
  std::vector<DatadistHixlPiece> cuts;
  cuts.reserve(pieces.size());
  for (const engine::Piece& piece : pieces) {
    auto local = reinterpret_cast<uint64_t>(piece.local);
    uint64_t remote = piece.remote;
    for (uint64_t left = piece.bytes; left > 0;) {
      const uint64_t bytes = std::min({left, here.bytes_from(local), there.bytes_from(remote)});
      require(bytes > 0, kParamInvalid, "hixl: a piece of ", piece.bytes, " bytes from ", local, " to ",
              remote, " leaves what was registered ", here.bytes_from(local) == 0 ? "here" : "there");
      cuts.push_back({local, remote, bytes});
      local += bytes;
      remote += bytes;
      left -= bytes;
    }
  }
  return cuts;
}

}  // namespace datadist::hixl
