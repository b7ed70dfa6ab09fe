#pragma once

#include <cstddef>
#include <memory>

namespace emu {

class Graph;

// Names one task of a finished graph, for aclmdlRITaskGetParams and its like.
struct GraphTask {
  std::weak_ptr<Graph> graph;
  size_t lane;
  size_t index;
};

}  // namespace emu
