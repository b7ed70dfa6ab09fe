#include "messages/messages.h"

#include <algorithm>
#include <map>

namespace datadist {
namespace {

// Those that the core raises with; Python knows all.
int64_t code_of(std::string_view kind) {
  static const std::map<std::string_view, int64_t> codes{
      {"LLM_KV_CACHE_NOT_EXIST", kKvCacheNotExist},
      {"LLM_PARAM_INVALID", kParamInvalid},
      {"LLM_NOT_YET_LINK", kNotYetLink},
      {"LLM_LINK_FAILED", kLinkFailed},
      {"LLM_FEATURE_NOT_ENABLED", kFeatureNotEnabled},
      {"LLM_TIMEOUT", kTimeout},
      {"LLM_LINK_BUSY", kLinkBusy},
      {"LLM_OUT_OF_MEMORY", kOutOfMemory},
  };
  const auto found = codes.find(kind);
  return found != codes.end() ? found->second : static_cast<int64_t>(kFailed);
}

}  // namespace

const std::vector<MessageRow>& message_rows() {
  static const std::vector<MessageRow> rows{
#define MESSAGE(name, kind, what, expected, state, next) {#name, #kind, what, expected, state, next},
#include "../../torch_llm_datadist/messages.inc"
#undef MESSAGE
  };
  return rows;
}

std::string MessageRow::text() const {
  return std::string(what) + ", " + expected + ". " + state + ": " + next + ".";
}

std::string fill_in(std::string_view text, const std::vector<Value>& values) {
  std::string filled;
  while (true) {
    const size_t open = text.find('{');
    filled += text.substr(0, open);
    if (open == std::string_view::npos) return filled;
    text.remove_prefix(open + 1);
    const size_t close = text.find('}');
    const std::string_view name = text.substr(0, close);
    const auto found =
        std::find_if(values.begin(), values.end(), [&](const Value& value) { return value.name == name; });
    // A value that was forgotten is no reason to say nothing; a test reads all calls for it.
    filled += found != values.end() ? found->text : "?";
    text.remove_prefix(close + 1);
  }
}

std::string render(Message row, const std::vector<Value>& values) {
  return fill_in(message_rows()[static_cast<size_t>(row)].text(), values);
}

void refuse(Message row, std::initializer_list<Value> values) {
  throw Error(code_of(message_rows()[static_cast<size_t>(row)].kind), render(row, values));
}

}  // namespace datadist
