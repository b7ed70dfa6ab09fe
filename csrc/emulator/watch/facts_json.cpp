#include "emulator/watch/facts_json.h"

#include <cinttypes>

#include "emulator/block.h"
#include "emulator/copy.h"
#include "emulator/error.h"
#include "emulator/ipc_memory.h"

namespace emu::watch {
namespace {

// A range list of a task that touches more pieces ends here, and says so.
constexpr size_t kMostPieces = 4096;

// Neighbours become one.
std::string ranges_text(const std::vector<Range>& ranges, int32_t& peer, bool& is_cut) {
  std::vector<Spot> spots;
  for (const Range& range : ranges) {
    Places::each(range, [&](const Spot& spot) {
      if (spot.block != nullptr && spot.block->import != nullptr) peer = spot.block->import->exporter_pid();
      if (!spots.empty() && spots.back().file == spot.file && spots.back().end == spot.begin) {
        spots.back().end = spot.end;
      } else if (spots.size() < kMostPieces) {
        spots.push_back({spot.file, spot.begin, spot.end, nullptr, nullptr});
      } else {
        is_cut = true;
      }
    });
  }
  std::string out = "[";
  for (const Spot& spot : spots) {
    if (out.size() > 1) out += ",";
    out += spot_json(spot);
  }
  return out + "]";
}

// Eight bytes that are copied into another process's memory: what a value write says where it is refused.
std::string word_for_a_peer(const TaskFacts& facts) {
  std::string out;
  if (facts.writes.size() != 1) return out;
  Places::each(facts.writes[0], [&](const Spot& spot) {
    if (spot.block == nullptr || spot.block->import == nullptr) return;
    if (spot.begin % sizeof(uint64_t) == 0 && spot.end - spot.begin == sizeof(uint64_t))
      out = ",\"tells\":" + spot_json(spot);
  });
  return out;
}

const char* name_of(Direction direction) {
  switch (direction) {
    case Direction::H2D:
      return "host to device";
    case Direction::D2H:
      return "device to host";
    case Direction::D2D:
      return "within a device";
    case Direction::Peer:
      return "to or from a peer";
    default:
      return "within the host";
  }
}

}  // namespace

std::string quoted(const std::string& plain) {
  std::string out = "\"";
  for (const char c : plain) {
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (c == '\n') {
      out += "\\n";
    } else if (static_cast<unsigned char>(c) < ' ') {
      out += ' ';
    } else {
      out += c;
    }
  }
  return out + '"';
}

std::string spot_json(const Spot& spot) {
  return text("[%" PRIu64 ",%" PRIu64 ",%" PRIu64 "]", spot.file, spot.begin, spot.end);
}

std::string facts_json(const TaskFacts& facts) {
  int32_t peer = 0;
  bool is_cut = false;
  std::string out = text("\"kind\":\"%s\"", emu::name_of(facts.kind));
  const std::string reads = ranges_text(facts.reads, peer, is_cut);
  const std::string writes = ranges_text(facts.writes, peer, is_cut);
  if (reads.size() > 2) out += ",\"reads\":" + reads;
  if (writes.size() > 2) out += ",\"writes\":" + writes;
  if (is_cut) out += ",\"cut\":true";
  if (facts.bytes != 0) out += text(",\"bytes\":%zu", facts.bytes);
  if (facts.direction) out += text(",\"direction\":\"%s\"", name_of(*facts.direction));
  if (facts.word != 0) {
    Places::each({facts.word, sizeof(uint64_t)}, [&](const Spot& spot) {
      out += ",\"word\":" + spot_json(spot);
      if (spot.block != nullptr && spot.block->import != nullptr) peer = spot.block->import->exporter_pid();
    });
    out += text(",\"value\":%" PRIu64 ",\"mode\":%u", facts.value, facts.mode);
  } else if (facts.kind == TaskKind::Fill) {
    out += text(",\"value\":%" PRIu64, facts.value);
  } else if (facts.kind == TaskKind::Copy && facts.bytes == sizeof(uint64_t)) {
    if (const auto value = Places::word_at(facts.reads)) out += text(",\"value\":%" PRIu64, *value);
    out += word_for_a_peer(facts);
  }
  if (peer != 0) out += text(",\"peer\":%d", peer);
  if (facts.sync != nullptr) {
    out += text(",\"sync\":%" PRIu64, facts.sync->number());
    if (facts.sync->shared_file != 0) {
      out +=
          text(",\"shared\":[%" PRIu64 ",%" PRIu64 "]", facts.sync->shared_file, facts.sync->shared_offset);
    }
  }
  if (!facts.notes.empty()) out += ",\"notes\":" + quoted(facts.notes);
  return out;
}

}  // namespace emu::watch
