// What a profiler's timeline says of a transfer: "torch_llm_datadist::push layer=3 blocks=4 bytes=65536
// peer=…". Made only while somebody records.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace datadist {

class Link;
struct TransferPlan;

namespace spans {

// `question`: whether a profiler records the calling thread. The core knows none itself.
void ask(bool (*question)());
// The answer of that question, or yes when TORCH_LLM_DATADIST_SPANS=1 says that somebody records from
// outside.
bool are_wanted();

struct Moved {
  int64_t first_layer;
  int64_t layers;
  int64_t blocks;
  int64_t bytes;
};
std::string text(const char* what, const Moved& moved, const Link& link);

// Of a push or a pull: of each part that is released by itself, each layer or all at once.
std::vector<std::string> of(const TransferPlan& plan, const Link& link, bool by_layer);

}  // namespace spans
}  // namespace datadist
