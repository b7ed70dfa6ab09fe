// Just enough of a test framework: TEST(name) { CHECK(a == b); }, and a runner that takes names.
#pragma once

#include <functional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace check {

struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Test {
  const char* name;
  void (*body)();
};

inline std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}

// What has to be undone before the runtime ends.
inline std::vector<void (*)()>& at_end() {
  static std::vector<void (*)()> all;
  return all;
}

struct Registration {
  Registration(const char* name, void (*body)()) { tests().push_back({name, body}); }
};

[[noreturn]] inline void fail(const char* file, int line, const std::string& what) {
  std::ostringstream out;
  out << file << ":" << line << ": " << what;
  throw Failure(out.str());
}

template <typename A, typename B>
void equal(const char* file, int line, const char* text, const A& a, const B& b) {
  if (a == b) return;
  std::ostringstream out;
  out << text << ": " << a << " against " << b;
  fail(file, line, out.str());
}

// The text of the exception that `call` throws.
template <typename Exception>
std::string thrown_by(const char* file, int line, const char* text, const std::function<void()>& call) {
  try {
    call();
  } catch (const Exception& error) {
    return error.what();
  }
  fail(file, line, std::string(text) + " threw nothing");
}

}  // namespace check

#define TEST(name)                                                         \
  static void test_##name();                                               \
  static const check::Registration registered_##name(#name, &test_##name); \
  static void test_##name()

#define CHECK(condition)                                           \
  do {                                                             \
    if (!(condition)) check::fail(__FILE__, __LINE__, #condition); \
  } while (0)
#define CHECK_EQUAL(a, b) check::equal(__FILE__, __LINE__, #a " == " #b, a, b)
// The message of what is thrown contains these words.
#define CHECK_THROWS(Exception, words, call)                                                                 \
  do {                                                                                                       \
    const std::string check_said = check::thrown_by<Exception>(__FILE__, __LINE__, #call, [&] { call; });    \
    if (check_said.find(words) == std::string::npos) {                                                       \
      check::fail(__FILE__, __LINE__, "\"" + check_said + "\" does not say \"" + std::string(words) + "\""); \
    }                                                                                                        \
  } while (0)
