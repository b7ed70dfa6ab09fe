#include "link/spans.h"

#include <atomic>
#include <cstdlib>
#include <string_view>

#include "error.h"
#include "link/link.h"
#include "link/transfer.h"
#include "link/transfer_bytes.h"

namespace datadist::spans {
namespace {

std::atomic<bool (*)()> asked{nullptr};

const char* name_of(const TransferPlan& plan) {
  if (plan.direction == Direction::kPull) return "pull";
  return plan.way == TransferPlan::Way::kPacked ? "packed_push" : "push";
}

}  // namespace

void ask(bool (*question)()) { asked.store(question, std::memory_order_release); }

bool are_wanted() {
  static const bool always = [] {
    const char* const said = std::getenv("TORCH_LLM_DATADIST_SPANS");
    return said != nullptr && *said != '\0' && std::string_view(said) != "0";
  }();
  if (always) return true;
  const auto question = asked.load(std::memory_order_acquire);
  return question != nullptr && question();
}

std::string text(const char* what, const Moved& moved, const Link& link) {
  const bool is_one = moved.layers == 1;
  return join("torch_llm_datadist::", what, is_one ? " layer=" : " layers=", moved.first_layer,
              is_one ? "" : join("-", moved.first_layer + moved.layers - 1), " blocks=", moved.blocks,
              " bytes=", moved.bytes, " peer=", link.peer().name);
}

std::vector<std::string> of(const TransferPlan& plan, const Link& link, bool by_layer) {
  int64_t blocks = 0;
  for (const Run& run : plan.runs) blocks += run.blocks;
  const LayerRange& range = plan.local_layers;
  const int64_t layers = by_layer ? 1 : range.layers;
  std::vector<std::string> made;
  for (int64_t first = 0; first < range.layers; first += layers) {
    const Moved moved{range.first_layer + first, layers, blocks, bytes_of(plan, first, layers)};
    made.push_back(text(name_of(plan), moved, link));
  }
  return made;
}

}  // namespace datadist::spans
