#pragma once

#include <cstdint>
#include <memory>
#include <string>

namespace emu {

class Device;
class Graph;

// A word in device memory that decides what a conditional task does. Tasks of the graph write it.
class Condition {
 public:
  // `restored`: it gets the value at the start of each replay.
  Condition(std::weak_ptr<Graph> graph, Device& device, uint64_t value, bool restored);
  ~Condition();
  Condition(const Condition&) = delete;
  Condition& operator=(const Condition&) = delete;

  void restart() const;
  uint64_t read() const;
  uintptr_t address() const { return address_; }

  const std::weak_ptr<Graph> graph;
  void* handle = nullptr;

 private:
  Device& device_;
  const uint64_t value_;
  const bool restored_;
  uintptr_t address_ = 0;
};

}  // namespace emu
