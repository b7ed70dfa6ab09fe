// The waits of one `bind`: a program on the binding's lane that waits for the flags of all its tickets, layer
// by layer, and opens the binding's gates. When that program cannot run to its end, the watchdog opens the
// gates instead, after the error.
#pragma once

#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "link/feeder.h"
#include "link/status.h"

namespace datadist {

class WaitRound : public std::enable_shared_from_this<WaitRound> {
 public:
  // `gates` open when they reach `round`.
  WaitRound(std::vector<Word> gates, uint64_t round, std::shared_ptr<Status> status)
      : gates_(std::move(gates)), round_(round), status_(std::move(status)) {}

  void submit(Feeder& feeder, std::shared_ptr<Lane> lane, std::vector<Step> steps);

  // True when all its waits have passed: nothing of the program is on the lane any more, and all gates are
  // open.
  bool is_done() const;
  // It ended too early and the watchdog has yet to open the gates.
  bool is_broken() const;
  // (code, why) when the gates were opened by the watchdog.
  std::optional<std::pair<int64_t, std::string>> failure() const;

  bool tick(const Tick& tick);  // watchdog; what `is_done` says from then on

 private:
  class Program;
  void ended(uint64_t mark, int64_t code, const std::string& what);

  const std::vector<Word> gates_;
  const uint64_t round_;
  const std::shared_ptr<Status> status_;
  mutable std::mutex mutex_;
  std::shared_ptr<Lane> lane_;
  bool has_ended_ = false;
  uint64_t mark_ = 0;
  std::optional<std::pair<int64_t, std::string>> failure_;
  bool is_done_ = false;
};

}  // namespace datadist
