#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace emu::watch {

// Where a task came from, for reports.
struct Origin {
  const char* name = "";  // entry point or op
  int32_t stream = -1;    // -1: the host itself
  int32_t device = -1;
  uint64_t number = 0;  // of the task on its stream
  std::string thread;   // that submitted it
  std::shared_ptr<const std::vector<void*>> frames;
  std::string notes;  // a Python stack, if somebody left one

  std::string text() const;
};

using OriginPtr = std::shared_ptr<const Origin>;

}  // namespace emu::watch
