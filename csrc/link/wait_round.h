// The waits of one `bind` for the flags of its tickets: by ops on their own streams, or by a relay that opens
// the binding's gates layer by layer. Where that relay cannot run to its end, the watchdog opens the rest,
// after the error.
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
  explicit WaitRound(std::shared_ptr<Status> status) : status_(std::move(status)) {}

  // Before `start` and all that leads to it; any thread, and again does nothing.
  void make_relay(Feeder& feeder);

  struct Opening {
    Word gate;
    size_t step;  // the one that opens it
  };
  void start(std::vector<Step> steps, std::vector<Opening> openings);
  void give_up(const std::string& why);

  // All that was bound with it is bound: until then nobody has passed anything.
  void all_is_bound();

  // A relay, or an op, is about to wait; the watchdog saw that all such ops are through, and whether they
  // were for every layer.
  void relay_begins();
  void op_begins();
  void ops_have_passed(bool for_all_layers);

  // True when no stream waits for a flag: those of ops are through, and the relay's, if there is one, which
  // has opened all gates. Without a relay, streams may still come unless the flags are set or were awaited.
  bool has_passed(bool flags_are_set) const;
  bool is_idle() const;  // no stream waits for a flag now
  // (code, why) when gates were opened by the watchdog.
  std::optional<std::pair<int64_t, std::string>> failure() const;
  // Why nobody waits any more for what has not arrived.
  std::optional<std::string> given_up() const;

  bool tick(const Tick& tick);  // watchdog; true when the relay is done, and from then on

 private:
  const std::shared_ptr<Status> status_;
  mutable std::mutex mutex_;
  std::shared_ptr<Relay> relay_;
  std::vector<Opening> openings_;
  std::optional<std::pair<int64_t, std::string>> failure_;
  std::optional<std::string> given_up_;
  bool is_bound_ = false;
  bool has_relay_ = false;
  bool is_done_ = false;  // the relay
  bool ops_wait_ = false;
  bool ops_saw_all_ = false;
};

}  // namespace datadist
