// The waits of one `bind`: a relay that waits for the flags of all its tickets, layer by layer, and opens the
// binding's gates. Where that relay cannot run to its end, the watchdog opens the rest, after the error.
#pragma once

#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "link/relay.h"
#include "link/status.h"

namespace datadist {

class WaitRound {
 public:
  WaitRound(Feeder& feeder, std::shared_ptr<Status> status)
      : status_(std::move(status)), relay_(std::make_shared<Relay>(feeder)) {}

  struct Opening {
    Word gate;
    size_t step;  // the one that opens it
  };
  void start(std::vector<Step> steps, std::vector<Opening> openings);
  void give_up(const std::string& why);

  // True when all its waits have passed: nothing of the relay is on a stream any more, and all gates were
  // opened.
  bool is_done() const;
  // (code, why) when gates were opened by the watchdog.
  std::optional<std::pair<int64_t, std::string>> failure() const;

  bool tick(const Tick& tick);  // watchdog; what `is_done` says from then on

 private:
  const std::shared_ptr<Status> status_;
  const std::shared_ptr<Relay> relay_;
  mutable std::mutex mutex_;
  std::vector<Opening> openings_;
  std::optional<std::pair<int64_t, std::string>> failure_;
  std::string given_up_;
  bool is_done_ = false;
};

}  // namespace datadist
