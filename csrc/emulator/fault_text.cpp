// Faults as text: what TORCH_LLM_DATADIST_EMULATE_FAULTS and emuFaults() take. Statements end with ';' or a
// new line: a verb, for some the name of a function, then key=value.

#include <cmath>
#include <cstring>
#include <sstream>

#include "emulator/error.h"
#include "emulator/faults.h"

namespace emu {
namespace {

constexpr const char* kDirections[] = {"h2d", "d2h", "d2d", "peer"};
constexpr const char* kResources[] = {"streams", "events", "notifies", "memory"};

struct Verb {
  const char* name;
  Fault kind;
  char function;       // '!' must name an entry point, '?' may name a task, ' ' takes none
  const char* keys;    // all that it takes
  const char* needed;  // the one that it must have, or ""
};

#define WHICH " nth times stream device direction address bytes "
constexpr Verb kVerbs[] = {
    {"fail", Fault::FailCall, '!', " code nth times address bytes ", "code"},
    {"late", Fault::LateCall, '!', " seconds nth times address bytes ", "seconds"},
    {"fail_task", Fault::FailTask, '?', " code" WHICH, "code"},
    {"task_delay", Fault::TaskDelay, ' ', " seconds stream device ", "seconds"},
    {"bandwidth", Fault::Bandwidth, ' ', " h2d d2h d2d peer stream device ", ""},
    {"split", Fault::Split, ' ', " piece stream device direction ", "piece"},
    {"hold_copy", Fault::HoldCopy, ' ', " after nth stream device direction address bytes ", "after"},
    {"flip_byte", Fault::FlipByte, ' ', " offset" WHICH, ""},
    {"overtake", Fault::Overtake, ' ', " seconds nth times stream device ", ""},
    {"freeze_device", Fault::Freeze, ' ', " device ", "device"},
    {"freeze_stream", Fault::Freeze, ' ', " stream ", "stream"},
    {"lose_device", Fault::Lose, ' ', " device code ", "device"},
    {"limit", Fault::Limit, ' ', " streams events notifies memory ", ""},
    {"exporter_dead", Fault::DeadExporter, ' ', " pid ", ""},
    {"count_as_pid", Fault::CountAsPid, ' ', " pid ", "pid"},
    {"export_page", Fault::ExportPage, ' ', " page ", "page"},
    {"spoil_capture", Fault::SpoilCapture, ' ', " after ", "after"},
    {"interleave", Fault::Interleave, ' ', " seed stream device ", "seed"},
};
#undef WHICH

// Keys whose number goes into the rule's amount.
constexpr const char* kAmounts = " piece after offset pid page seed ";

bool is_in(const char* list, const std::string& word) {
  return std::strstr(list, (" " + word + " ").c_str()) != nullptr;
}

class Statement {
 public:
  explicit Statement(const std::string& text) : text_(text) {}

  void parse(std::vector<FaultRule>& out) {
    std::istringstream words(text_);
    std::string word;
    if (!(words >> word)) return;
    verb_ = verb(word);
    rule_.kind = static_cast<uint64_t>(verb_->kind);
    set_defaults();
    bool first = true;
    while (words >> word) {
      if (const auto equals = word.find('='); equals != std::string::npos) {
        set(word.substr(0, equals), word.substr(equals + 1));
      } else if (first && verb_->function != ' ') {
        name_function(word);
      } else {
        wrong("'" + word + "' is not key=value");
      }
      first = false;
    }
    check_complete();
    if (several_.empty()) several_.push_back(rule_);
    for (FaultRule& rule : several_) {
      // What all of a statement's rules share may stand before or behind what makes them several.
      rule.stream = rule_.stream;
      rule.device = rule_.device;
      out.push_back(rule);
    }
  }

 private:
  [[noreturn]] void wrong(const std::string& what) const {
    fail(ACL_ERROR_INVALID_PARAM, "'%s': %s", text_.c_str(), what.c_str());
  }

  const Verb* verb(const std::string& word) const {
    std::string known;
    for (const Verb& verb : kVerbs) {
      if (word == verb.name) return &verb;
      known += std::string(known.empty() ? "" : ", ") + verb.name;
    }
    wrong("'" + word + "' is no fault; there are " + known);
  }

  void set_defaults() {
    if (verb_->kind == Fault::Lose) rule_.code = ACL_ERROR_RT_LOST_HEARTBEAT;
    if (verb_->kind == Fault::Overtake) rule_.amount = 50'000'000;
  }

  void name_function(const std::string& name) {
    if (verb_->function == '!' && entry_named(name.c_str()) == Entry::kCount) {
      wrong("there is no entry point '" + name + "'");
    }
    if (name.size() >= sizeof rule_.function) wrong("'" + name + "' is too long a name");
    std::memcpy(rule_.function, name.c_str(), name.size() + 1);
  }

  double number(const std::string& key, const std::string& given, bool whole) const {
    char* end = nullptr;
    const double value = std::strtod(given.c_str(), &end);
    wrong_unless(!given.empty() && *end == '\0' && std::isfinite(value) && value >= 0 &&
                     (!whole || value == std::floor(value)),
                 key, given, whole);
    return value;
  }

  void wrong_unless(bool right, const std::string& key, const std::string& given, bool whole = true) const {
    if (!right) wrong(key + "=" + given + ": expected a " + (whole ? "whole " : "") + "number of 0 or more");
  }

  uint64_t count(const std::string& key, const std::string& given) const {
    // Addresses and handles do not fit a double.
    if (given.rfind("0x", 0) == 0) {
      char* end = nullptr;
      const uint64_t value = std::strtoull(given.c_str(), &end, 16);
      wrong_unless(end != given.c_str() && *end == '\0', key, given);
      return value;
    }
    return static_cast<uint64_t>(number(key, given, true));
  }

  void add(const char* resource, int64_t direction, uint64_t amount) {
    FaultRule rule = rule_;
    if (resource != nullptr) std::strncpy(rule.function, resource, sizeof rule.function - 1);
    rule.direction = direction;
    rule.amount = amount;
    several_.push_back(rule);
  }

  void set(const std::string& key, const std::string& given) {
    if (!is_in(verb_->keys, key)) {
      wrong("'" + key + "' is not known here; " + verb_->name + " takes" + verb_->keys);
    }
    set_ += " " + key + " ";
    for (const char* resource : kResources) {
      if (key == resource) return add(resource, -1, count(key, given));
    }
    for (int i = 0; i < 4; ++i) {
      if (key == kDirections[i]) return add(nullptr, i, static_cast<uint64_t>(number(key, given, false)));
      if (key == "direction" && given == kDirections[i]) rule_.direction = i;
    }
    if (key == "direction") {
      if (rule_.direction < 0) wrong("direction=" + given + ": expected one of h2d, d2h, d2d, peer");
    } else if (key == "seconds") {
      rule_.amount = static_cast<uint64_t>(number(key, given, false) * 1e9);
    } else if (key == "code") {
      rule_.code = static_cast<int64_t>(count(key, given));
    } else if (key == "nth") {
      rule_.nth = count(key, given);
      if (rule_.nth == 0) wrong("nth=0: expected 1 for the next, or more");
    } else if (key == "times") {
      rule_.times = count(key, given);
    } else if (key == "stream") {
      rule_.stream = count(key, given);
    } else if (key == "device") {
      rule_.device = static_cast<int64_t>(count(key, given));
    } else if (key == "address") {
      rule_.address = count(key, given);
    } else if (key == "bytes") {
      rule_.bytes = count(key, given);
    } else if (is_in(kAmounts, key)) {
      rule_.amount = count(key, given);
    }
  }

  void check_complete() {
    if (verb_->function == '!' && rule_.function[0] == '\0') wrong("the function's name is missing");
    if (*verb_->needed != '\0' && !is_in(set_.c_str(), verb_->needed)) {
      wrong(std::string(verb_->needed) + "= is missing");
    }
    if ((verb_->kind == Fault::Bandwidth || verb_->kind == Fault::Limit) && several_.empty()) {
      wrong(std::string(verb_->name) + " takes at least one of" + verb_->keys);
    }
    if (verb_->kind == Fault::FailCall || verb_->kind == Fault::LateCall) {
      if ((rule_.address != 0 || rule_.bytes != 0) && !touches_memory(entry_named(rule_.function))) {
        wrong(std::string("calls of ") + rule_.function + " cannot be told apart by address or bytes");
      }
    }
    if (verb_->kind == Fault::SpoilCapture) {
      rule_.nth = rule_.amount;
      if (rule_.nth == 0) wrong("after=0: expected 1 task or more");
    }
  }

  const std::string text_;
  const Verb* verb_ = nullptr;
  FaultRule rule_;
  std::vector<FaultRule> several_;
  std::string set_;
};

}  // namespace

std::vector<FaultRule> parse_faults(const std::string& text) {
  std::vector<FaultRule> rules;
  size_t begin = 0;
  while (begin <= text.size()) {
    const size_t end = std::min(text.find_first_of(";\n", begin), text.size());
    Statement(text.substr(begin, end - begin)).parse(rules);
    begin = end + 1;
  }
  return rules;
}

}  // namespace emu
