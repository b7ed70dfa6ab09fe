// The planner's paths, one per run, for benchmarks/count_instructions.py: instructions under valgrind tell of
// a change that a clock on a busy machine does not.
//
//   count_instructions PATH     plan and enqueue as named below; prints the number of runs or copies
//
// Callgrind collects inside `counted` alone.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "plan/copies.h"

namespace {

using datadist::Copies;
using datadist::Rows;
using datadist::Run;
using datadist::TensorPair;

struct Request {
  std::vector<int64_t> src;
  std::vector<int64_t> dst;
  int64_t blocks = 0;
  std::vector<TensorPair> tensors;
};

std::vector<int64_t> shuffled(int64_t count, unsigned seed) {
  std::vector<int64_t> ids(count);
  for (int64_t i = 0; i < count; ++i) ids[i] = i;
  std::mt19937 random(seed);
  for (int64_t i = count - 1; i > 0; --i) std::swap(ids[i], ids[random() % (i + 1)]);
  return ids;
}

// `listed` of `blocks` blocks, in `tensors` tensors of one slab or of one each.
Request make(size_t listed, int64_t blocks, size_t tensors, bool is_slab, bool is_sorted) {
  Request request;
  request.blocks = blocks;
  request.src = shuffled(blocks, 1);
  request.dst = shuffled(blocks, 2);
  request.src.resize(listed);
  request.dst.resize(listed);
  if (is_sorted) {
    for (size_t i = 0; i < listed; ++i) request.src[i] = request.dst[i] = static_cast<int64_t>(i);
  }
  constexpr int64_t kBlock = 64 << 10;
  for (size_t t = 0; t < tensors; ++t) {
    const auto offset = static_cast<uintptr_t>(t) * blocks * kBlock * (is_slab ? 1 : t + 2);
    request.tensors.push_back({reinterpret_cast<char*>((uintptr_t{1} << 44) + offset),
                               reinterpret_cast<char*>((uintptr_t{1} << 45) + offset), kBlock, kBlock, kBlock,
                               is_slab ? 1u : 0u, is_slab ? 1u : 0u});
  }
  return request;
}

size_t plan(Request& request, bool with_copies) {
  const auto runs = datadist::plan_runs({request.src.data(), request.src.size(), request.dst.data(),
                                         request.dst.size(), request.blocks, request.blocks},
                                        "count");
  if (!with_copies) return runs.size();
  Copies copies;
  copies.begin(request.tensors.data(), request.tensors.size(), runs.data(), runs.size(), {});
  size_t count = 0;
  for (Rows rows; copies.next(&rows);) ++count;
  return count;
}

}  // namespace

extern "C" __attribute__((noinline)) size_t counted(Request& request, bool with_copies) {
  return plan(request, with_copies);
}

int main(int argc, char** argv) {
  const char* path = argc > 1 ? argv[1] : "";
  struct Path {
    const char* name;
    size_t listed;
    int64_t blocks;
    size_t tensors;
    bool is_slab, is_sorted, with_copies;
  };
  constexpr Path kPaths[] = {
      {"plan one block", 1, 1000, 1, false, true, false},
      {"plan 65 scattered", 65, 1000, 1, false, false, false},
      {"plan 100 scattered", 100, 1000, 1, false, false, false},
      {"plan 200 scattered", 200, 1000, 1, false, false, false},
      {"plan 100000 scattered", 100'000, 100'000, 1, false, false, false},
      {"plan 100000 in order", 100'000, 100'000, 1, false, true, false},
      {"enqueue one block", 1, 1000, 1, false, true, true},
      {"enqueue 122 x 32 scattered", 32, 1000, 122, false, false, true},
      {"enqueue 122 x 32 in a slab", 32, 1000, 122, true, false, true},
  };
  for (const Path& asked : kPaths) {
    if (std::strcmp(path, asked.name) != 0) continue;
    Request request = make(asked.listed, asked.blocks, asked.tensors, asked.is_slab, asked.is_sorted);
    plan(request, asked.with_copies);  // in steady state: the scratch memory is there
    std::printf("%zu\n", counted(request, asked.with_copies));
    return 0;
  }
  for (const Path& known : kPaths) std::printf("%s\n", known.name);
  return 1;
}
