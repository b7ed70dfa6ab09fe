#include "plan_oracle.h"

#include <algorithm>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "chance.h"
#include "check.h"
#include "error.h"

namespace datadist::plan_oracle {
namespace {

struct Case {
  int64_t src_count = 0;
  int64_t dst_count = 0;
  int64_t src_stride = 0;  // bytes of a block; for slices of an entry those of the entry
  int64_t dst_stride = 0;
  int tensors = 0;
  Shape shape;
  std::vector<int64_t> src;
  std::vector<int64_t> dst;
};

void draw_lists(Chance& chance, Case& c) {
  const int64_t fewest = std::min(c.src_count, c.dst_count);
  const auto length = static_cast<size_t>(chance.below(chance.once_in(50) || fewest > 50 ? 90 : 12));
  std::vector<int64_t> free(static_cast<size_t>(c.dst_count));
  for (size_t i = 0; i < free.size(); ++i) free[i] = static_cast<int64_t>(i);
  const bool in_order = chance.once_in(2);
  const bool are_distinct = chance.once_in(2);
  std::set<int64_t> taken;
  int64_t src = chance.below(c.src_count);
  for (size_t i = 0; i < length && !free.empty(); ++i) {
    src = in_order && src + 1 < c.src_count ? src + 1 : chance.below(c.src_count);
    if (are_distinct && !taken.insert(src).second) continue;
    const auto at = in_order ? 0 : static_cast<size_t>(chance.below(static_cast<int64_t>(free.size())));
    c.src.push_back(src);
    c.dst.push_back(free[at]);
    free.erase(free.begin() + static_cast<ptrdiff_t>(at));
    if (chance.once_in(8)) {
      c.src.push_back(-1);
      c.dst.push_back(-1);
    }
  }
}

// Now and then something that must be refused.
void spoil(Chance& chance, Case& c) {
  if (!chance.once_in(4) || c.src.empty()) return;
  const auto at = static_cast<size_t>(chance.below(static_cast<int64_t>(c.src.size())));
  const int64_t odd[] = {-1, -2, INT64_MIN, INT64_MAX, c.src_count, c.dst_count, c.dst_count + 1};
  const int64_t value = odd[chance.below(std::size(odd))];
  switch (chance.below(4)) {
    case 0:
      c.src[at] = value;
      break;
    case 1:
      c.dst[at] = value;
      break;
    case 2:
      c.dst.push_back(c.dst[at]);
      c.src.push_back(chance.once_in(2) ? c.src[at] : chance.below(c.src_count));
      break;
    default:
      (chance.once_in(2) ? c.src : c.dst).pop_back();
  }
}

Case draw(uint64_t seed) {
  Chance chance(seed);
  Case c;
  c.tensors = 1 + static_cast<int>(chance.below(4));
  const int64_t most_blocks = chance.once_in(20) ? 200 : 20;
  c.dst_count = 1 + chance.below(most_blocks);
  c.dst_stride = 1 + chance.below(9);
  if (chance.once_in(4)) {
    // One entry, cut into slices as long as a destination block; the last may be shorter.
    c.shape.layout = Layout::kEntryToBlocks;
    c.src_stride = 1 + chance.below(40);
    c.src_count = (c.src_stride + c.dst_stride - 1) / c.dst_stride;
    c.shape.src_entry = chance.below(3);
  } else {
    c.src_count = 1 + chance.below(most_blocks);
    c.src_stride = c.dst_stride;
  }
  draw_lists(chance, c);
  spoil(chance, c);
  return c;
}

// Why it must be refused; or nothing.
std::optional<std::string> reason_to_refuse(const Case& c) {
  if (c.src.size() != c.dst.size()) return "go in pairs";
  for (size_t i = 0; i < c.src.size(); ++i) {
    if (c.src[i] == -1 && c.dst[i] == -1) continue;
    if (c.src[i] < 0 || c.src[i] >= c.src_count) return "src_blocks[" + std::to_string(i) + "]";
    if (c.dst[i] < 0 || c.dst[i] >= c.dst_count) return "dst_blocks[" + std::to_string(i) + "]";
  }
  std::set<int64_t> seen;
  for (const int64_t dst : c.dst) {
    if (dst != -1 && !seen.insert(dst).second) return "twice";
  }
  return std::nullopt;
}

constexpr size_t kMargin = 16;
constexpr char kUntouched = '\x5A';

// Tensors, one behind the other or apart, with a margin that nobody may touch.
struct Memory {
  Memory(const Case& c, size_t tensor_bytes, size_t gap) : pitch(tensor_bytes + gap) {
    bytes.assign(2 * kMargin + pitch * static_cast<size_t>(c.tensors), kUntouched);
  }
  char* tensor(int t) { return bytes.data() + kMargin + pitch * static_cast<size_t>(t); }
  bool contains(const char* from, size_t length) const {
    return from >= bytes.data() && length <= bytes.size() &&
           static_cast<size_t>(from - bytes.data()) <= bytes.size() - length;
  }

  const size_t pitch;
  std::vector<char> bytes;
};

void reference(const Case& c, Memory& src, Memory& dst) {
  for (int t = 0; t < c.tensors; ++t) {
    for (size_t i = 0; i < c.src.size(); ++i) {
      if (c.dst[i] == -1) continue;
      int64_t from = c.src[i] * c.src_stride;
      int64_t length = c.src_stride;
      if (c.shape.layout == Layout::kEntryToBlocks) {
        const int64_t within = c.src[i] * c.dst_stride;
        from = c.shape.src_entry * c.src_stride + within;
        length = std::min(c.dst_stride, c.src_stride - within);
      }
      for (int64_t b = 0; b < length; ++b) {
        dst.tensor(t)[c.dst[i] * c.dst_stride + b] = src.tensor(t)[from + b];
      }
    }
  }
}

void run(const Case& c, std::span<const Run> runs, Memory& src, Memory& dst, bool knows_slabs) {
  std::vector<TensorPair> tensors;
  for (int t = 0; t < c.tensors; ++t) {
    const uintptr_t slab = knows_slabs ? 1 : 0;
    tensors.push_back({dst.tensor(t), src.tensor(t), c.dst_stride, c.src_stride, c.dst_stride, slab, slab});
  }
  Copies copies;
  copies.begin(tensors.data(), tensors.size(), runs.data(), runs.size(), c.shape);
  for (Rows rows; copies.next(&rows);) {
    CHECK(rows.width > 0 && rows.height > 0);
    CHECK(rows.width <= RowMerger::kMaxWidth || rows.height == 1);
    for (size_t r = 0; r < rows.height; ++r) {
      const Rows row = rows.row(r);
      CHECK(src.contains(row.src, row.width) && dst.contains(row.dst, row.width));
      std::copy_n(row.src, row.width, row.dst);
    }
  }
}

}  // namespace

void try_case(uint64_t seed) {
  const Case c = draw(seed);
  const auto reason = reason_to_refuse(c);
  std::span<const Run> runs;
  try {
    runs =
        plan_runs({c.src.data(), c.src.size(), c.dst.data(), c.dst.size(), c.src_count, c.dst_count}, "fuzz");
  } catch (const Error& error) {
    const bool is_right = reason && error.code() == kParamInvalid &&
                          std::string(error.what()).find(*reason) != std::string::npos;
    if (!is_right) {
      check::fail(__FILE__, __LINE__, "seed " + std::to_string(seed) + " is refused: " + error.what());
    }
    return;
  }
  if (reason) check::fail(__FILE__, __LINE__, "seed " + std::to_string(seed) + " is not refused: " + *reason);
  const auto is_wrong = [](const Run& one, const Run& next) {
    const bool go_on = one.src + one.blocks == next.src && one.dst + one.blocks == next.dst;
    return go_on || std::pair(one.src, one.dst) >= std::pair(next.src, next.dst);
  };
  if (std::adjacent_find(runs.begin(), runs.end(), is_wrong) != runs.end())
    check::fail(__FILE__, __LINE__,
                "seed " + std::to_string(seed) + ": not the longest runs, or not in order");
  Chance chance(~seed);
  const bool knows_slabs = chance.once_in(2);
  const int64_t entries = c.shape.layout == Layout::kBlocks ? c.src_count : c.shape.src_entry + 1;
  const auto src_bytes = static_cast<size_t>(entries * c.src_stride);
  const auto dst_bytes = static_cast<size_t>(c.dst_count * c.dst_stride);
  Memory src(c, src_bytes, static_cast<size_t>(chance.below(3)));
  for (char& byte : src.bytes) byte = static_cast<char>(chance.next());
  Memory expected(c, dst_bytes, static_cast<size_t>(chance.below(3)));
  Memory found = expected;
  reference(c, src, expected);
  run(c, runs, src, found, knows_slabs);
  if (found.bytes != expected.bytes) {
    check::fail(__FILE__, __LINE__, "seed " + std::to_string(seed) + ": other bytes than the reference");
  }
}

}  // namespace datadist::plan_oracle
