// The local words at which a forward's ops and a binding's streams meet. Each is 0 or 1, because a value that
// is captured in a graph is a constant: one stream writes 1, exactly one other waits for that and writes 0
// back.
#pragma once

#include <vector>

#include "link/words.h"

namespace datadist {

struct PushGate {
  Word released;  // written by the forward, taken by a stream of the binding
  bool is_captured = false;
};

struct WaitGate {
  Word opened;   // written by a stream of the binding or by the watchdog, taken by the forward
  Word reached;  // 1 while a stream of a graph stands at it: how a replay that nobody bound is noticed
  bool is_captured = false;
};

// Of a forward's streams, each has a mark. More than these are allocated when a further stream calls an op.
constexpr size_t kMarks = 8;

// One set of them. Forwards that are not captured get a new set from each bind, so the host may run ahead; a
// set that a graph has captured stays with its binding for good.
struct Gates {
  Gates(WordPool* words, size_t layers) : pool(words) {
    auto taken = words->take(3 * layers + 4 + kMarks);
    auto next = taken.begin();
    status = *next++;
    graph_status = *next++;
    finish = {*next++, *next++};
    for (size_t i = 0; i < kMarks; ++i) marks.push_back(*next++);
    for (size_t i = 0; i < layers; ++i) {
      pushes.push_back({*next++});
      waits.push_back({*next++, *next++});
    }
  }
  // No stream reads or writes them any more.
  ~Gates() {
    for (const Word& word : {status, graph_status, finish.opened, finish.reached}) pool->give_back(word);
    for (const Word& mark : marks) pool->give_back(mark);
    for (const PushGate& gate : pushes) pool->give_back(gate.released);
    for (const WaitGate& gate : waits) {
      pool->give_back(gate.opened);
      pool->give_back(gate.reached);
    }
  }
  Gates(const Gates&) = delete;
  Gates& operator=(const Gates&) = delete;

  // Watchdog: whether all of them were 0 at its last look.
  bool are_shut() const {
    const auto is_shut = [](const WaitGate& gate) {
      return gate.opened.seen() == 0 && gate.reached.seen() == 0;
    };
    bool shut = is_shut(finish);
    for (const WaitGate& gate : waits) shut = shut && is_shut(gate);
    for (const PushGate& gate : pushes) shut = shut && gate.released.seen() == 0;
    return shut;
  }

  WordPool* const pool;
  bool belong_to_graphs = false;
  std::vector<PushGate> pushes;  // per layer of the binding, in its order
  std::vector<WaitGate> waits;
  WaitGate finish;
  Word status;              // what eager ops copy to their status tensor
  std::vector<Word> marks;  // one per stream of eager ops that meet no gate: how far it has come
  Word graph_status;        // what captured ones copy; between two rounds it says that nothing is bound
};

}  // namespace datadist
