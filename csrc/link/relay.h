// A short program on a stream of a binding's that touches local words only: it takes what one side wrote and
// passes it on to another.
#pragma once

#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "link/feeder.h"

namespace datadist {

class Relay : public std::enable_shared_from_this<Relay> {
 public:
  // On a lane of its own, so that relays never hold each other up. Throws LLM_FAILED when the device is shut
  // down.
  explicit Relay(Feeder& feeder);
  ~Relay();
  void start(std::vector<Step> steps);  // once, or not at all

  // Watchdog, once per tick; true when nothing of it is on the lane any more, and from then on.
  bool tick();
  bool is_done() const;
  bool has_started() const;
  // (code, why) of one that is done but did not get to its end.
  std::optional<std::pair<int64_t, std::string>> failure() const;
  // Of one that is done: whether that step ran.
  bool did(size_t step) const;

  // Takes its stream away; what it still had to do is not done.
  void give_up();

 private:
  class Program;
  void ended(uint64_t mark, int64_t code, const std::string& what, size_t steps);

  Feeder& feeder_;
  const std::shared_ptr<Lane> lane_;
  mutable std::mutex mutex_;
  bool has_started_ = false;
  bool has_ended_ = false;
  uint64_t mark_ = 0;
  size_t steps_ = 0;
  std::optional<std::pair<int64_t, std::string>> failure_;
  bool is_done_ = false;
};

}  // namespace datadist
