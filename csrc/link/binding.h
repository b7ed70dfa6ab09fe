// Joins tasks (what a forward sends) and tickets (what it waits for) to the forward's layer ops, which carry
// no request of their own: only this binding's number, the same for the life of the forward.
//
// A task's layers are released straight at its gates. For tickets a stream of the binding's own waits, layer
// by layer, for the arrival flags of all of them and then opens one local gate; so a torch stream waits at
// one word however many transfers a batch has, and a late one holds up nobody else's stream.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <vector>

#include "acl/acl_rt.h"
#include "link/engine.h"
#include "link/ticket.h"
#include "link/transfer.h"
#include "link/wait_round.h"

namespace datadist {

class Binding {
 public:
  Binding(std::shared_ptr<Engine> engine, std::vector<int64_t> layers, std::chrono::milliseconds timeout);
  ~Binding();

  // Replaces what was bound. Layers in `open_layers` have no gate: a wait passes at once, a push goes at
  // once.
  void bind(std::vector<std::shared_ptr<Transfer>> tasks, const std::vector<int64_t>& tickets,
            const std::vector<int64_t>& open_layers, std::chrono::milliseconds timeout);

  // One layer op's share of the caller's stream, worked out when the op is called and queued in its handler:
  // wait for these words to reach `wait_value`, copy the status, then write 1 to the gates, then `op_number`
  // to `op_word`.
  struct Gates {
    std::vector<char*> waits;
    uint64_t wait_value = 1;
    char* status = nullptr;
    char* failed = nullptr;  // copied in place of the status when a wait was refused
    std::vector<Gate> writes;
    char* op_word = nullptr;
    uint64_t op_number = 0;
  };
  Gates push_layer(int64_t layer, aclrtStream stream);
  Gates wait_layer(int64_t layer, aclrtStream stream);
  Gates finish(aclrtStream stream);

  // The same for a caller that computes on the host: its earlier work is done, and it is blocked where a
  // stream would wait (without the GIL or a lock; the transfers' deadlines end it). The binding's code.
  int64_t push_layer_from_host(int64_t layer);
  int64_t wait_layer_on_host(int64_t layer);
  int64_t finish_on_host();

  int device() const { return engine_->device(); }
  Engine& engine() const { return *engine_; }
  void set_number(int64_t number) { number_ = number; }

  // Watchdog, for one that is destroyed: true when no stream reads its words any more.
  bool streams_have_passed();
  void give_back();

 private:
  struct StreamMark {
    Word word;
    uint64_t last = 0;
  };
  Gates gates_on(aclrtStream stream);
  void require_layer(int64_t layer, const char* asked) const;
  // The bound tasks that send this layer when it is pushed.
  std::vector<std::shared_ptr<Transfer>> take_push(int64_t layer);
  void check(const std::vector<std::shared_ptr<Transfer>>& tasks,
             const std::vector<std::shared_ptr<Ticket>>& tickets, const std::set<int64_t>& open) const;
  std::shared_ptr<Lane> lane_for_waits();

  const std::shared_ptr<Engine> engine_;
  const std::vector<int64_t> layers_;
  const std::chrono::milliseconds timeout_;
  int64_t number_ = 0;

  std::mutex mutex_;
  bool was_bound_ = false;
  uint64_t round_ = 0;             // counts binds; the value that opens this bind's gates
  std::map<int64_t, Word> ready_;  // per layer
  const Word opened_;              // how far the last bind's waits have come, for hosts that wait
  std::shared_ptr<Status> status_;
  std::vector<std::shared_ptr<Transfer>> tasks_;
  bool has_waits_ = false;
  std::shared_ptr<WaitRound> waits_;               // of the last bind that had tickets
  std::vector<std::shared_ptr<Status>> replaced_;  // a stream may still have to copy them
  std::set<int64_t> open_;
  std::set<int64_t> pushed_;
  std::shared_ptr<Lane> lane_;
  std::map<aclrtStream, StreamMark> op_marks_;
};

HandleTable<Binding>& bindings();

}  // namespace datadist
