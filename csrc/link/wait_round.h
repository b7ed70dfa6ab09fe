// The waits of one `bind`: a program on the binding's lane that waits for the flags of all its tickets, layer
// by layer, and opens the binding's gates. When that program cannot run to its end, the watchdog opens the
// gates instead, after the error.
#pragma once

#include <condition_variable>
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
  struct LayerGate {
    int64_t layer;
    Word word;
  };
  // `gates` open when they reach `round`, in this order. `opened` says how many did, as `opened_value`.
  WaitRound(std::vector<LayerGate> gates, uint64_t round, Word opened, std::shared_ptr<Status> status)
      : gates_(std::move(gates)), round_(round), opened_(opened), status_(std::move(status)) {}
  uint64_t opened_value(size_t gates) const { return round_ << kCountBits | gates; }

  void submit(Feeder& feeder, std::shared_ptr<Lane> lane, std::vector<Step> steps);

  // True when all its waits have passed: nothing of the program is on the lane any more, and all gates are
  // open.
  bool is_done() const;
  // Blocks until the layer's gate is open, by the program or by the watchdog.
  void wait_on_host(int64_t layer);
  // It ended too early and the watchdog has yet to open the gates.
  bool is_broken() const;
  // (code, why) when the gates were opened by the watchdog.
  std::optional<std::pair<int64_t, std::string>> failure() const;

  bool tick(const Tick& tick);  // watchdog; what `is_done` says from then on
  void abandon();               // there is no watchdog any more

 private:
  class Program;
  void ended(uint64_t mark, int64_t code, const std::string& what);

  static constexpr int kCountBits = 16;

  const std::vector<LayerGate> gates_;
  const uint64_t round_;
  const Word opened_;
  const std::shared_ptr<Status> status_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  size_t open_gates_ = 0;  // as the watchdog saw it last
  bool is_abandoned_ = false;
  std::shared_ptr<Lane> lane_;
  bool has_ended_ = false;
  uint64_t mark_ = 0;
  std::optional<std::pair<int64_t, std::string>> failure_;
  bool is_done_ = false;
};

}  // namespace datadist
