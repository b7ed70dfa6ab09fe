#include "emulator/watch/shadow.h"

namespace emu::watch {

Shadow::Pieces& Shadow::pieces_of(uint64_t file) {
  Pieces& pieces = files_[file];
  if (pieces.size() > kMostPieces) {
    pieces_ -= pieces.size();
    pieces.clear();
  }
  return pieces;
}

Shadow::Pieces::iterator Shadow::cut(Pieces& pieces, uint64_t begin, uint64_t end) {
  for (const uint64_t edge : {begin, end}) {
    auto it = pieces.upper_bound(edge);
    if (it == pieces.begin()) continue;
    --it;
    if (it->first == edge || it->second.end <= edge) continue;
    Piece tail = it->second;
    it->second.end = edge;
    pieces.emplace(edge, std::move(tail));
    ++pieces_;
  }
  return pieces.lower_bound(begin);
}

void Shadow::read(uint64_t file, uint64_t begin, uint64_t end, const Access& access, const Clock& now,
                  const Found& found) {
  Pieces& pieces = pieces_of(file);
  auto it = cut(pieces, begin, end);
  for (uint64_t at = begin; at < end;) {
    if (it == pieces.end() || it->first > at) {
      const uint64_t until = it == pieces.end() ? end : std::min(end, it->first);
      it = pieces.emplace_hint(it, at, Piece{until, false, {}, {access}});
      ++pieces_;
    } else {
      Piece& piece = it->second;
      if (piece.written && !now.covers(piece.write.line, piece.write.at)) {
        found({at, piece.end, piece.write, true});
      }
      // Reads that come before this one are no news to whoever waits for this one.
      std::erase_if(piece.reads, [&](const Access& read) { return now.covers(read.line, read.at); });
      piece.reads.push_back(access);
    }
    at = it->second.end;
    ++it;
  }
}

void Shadow::write(uint64_t file, uint64_t begin, uint64_t end, const Access& access, const Clock& now,
                   const Found& found) {
  Pieces& pieces = pieces_of(file);
  auto it = cut(pieces, begin, end);
  while (it != pieces.end() && it->first < end) {
    const Piece& piece = it->second;
    if (piece.written && !now.covers(piece.write.line, piece.write.at)) {
      found({it->first, piece.end, piece.write, true});
    }
    for (const Access& read : piece.reads) {
      if (!now.covers(read.line, read.at)) found({it->first, piece.end, read, false});
    }
    it = pieces.erase(it);
    --pieces_;
  }
  pieces.emplace_hint(it, begin, Piece{end, true, access, {}});
  ++pieces_;
}

void Shadow::forget(uint64_t file, uint64_t begin, uint64_t end) {
  const auto known = files_.find(file);
  if (known == files_.end()) return;
  Pieces& pieces = known->second;
  auto it = cut(pieces, begin, end);
  while (it != pieces.end() && it->first < end) {
    it = pieces.erase(it);
    --pieces_;
  }
  if (pieces.empty()) files_.erase(known);
}

}  // namespace emu::watch
