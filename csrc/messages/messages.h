// Says what went wrong, from one table, torch_llm_datadist/messages.inc, that Python reads, too.
#pragma once

#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

#include "error.h"

namespace datadist {

enum class Message {
#define MESSAGE(name, kind, what, expected, state, next) name,
#include "../../torch_llm_datadist/messages.inc"
#undef MESSAGE
};

// A value of a message, under the name that stands in the row.
struct Value {
  template <typename T>
  Value(const char* named, const T& value) : name(named), text(join(value)) {}
  const char* name;
  std::string text;
};

std::string render(Message row, const std::vector<Value>& values);
// Throws an Error with the code of the row.
[[noreturn]] void refuse(Message row, std::initializer_list<Value> values);

// A reason that is a message of the table already, which says what to do next; what a runtime or an engine
// says is none, and a row is still to say the rest.
inline bool is_message(std::string_view reason) { return reason.ends_with('.'); }

struct MessageRow {
  const char* name;
  const char* kind;
  const char* what;
  const char* expected;
  const char* state;
  const char* next;

  std::string text() const;
};
const std::vector<MessageRow>& message_rows();
std::string fill_in(std::string_view text, const std::vector<Value>& values);

}  // namespace datadist
