#pragma once

#include <memory>
#include <string>
#include <vector>

namespace emu {

// Where something was made or freed: the native frames, and the Python ones when the thread holds the GIL.
// Taken only when somebody will ask (TORCH_LLM_DATADIST_EMULATE_LEAKS or …_STACKS).
class Stack {
 public:
  // Of the caller; null when nobody asks.
  static std::shared_ptr<const Stack> here();
  // Whether messages and reports show stacks, too.
  static bool is_shown();

  // The file name of the first library on it that is not this one.
  std::string maker() const;
  // One frame per line, innermost first, Python before native.
  std::string text(const std::string& indent) const;

 private:
  std::vector<void*> frames_;
  std::string python_;
};

}  // namespace emu
