#pragma once

#include <memory>
#include <utility>

#include "emulator/acl_headers.h"
#include "emulator/facts.h"

namespace emu {

class Stream;
struct Copy;

// One entry of a stream's queue. It may be run many times (a captured graph) or never (a stopped stream).
class Task {
 public:
  explicit Task(const char* what) : what(what) {}
  virtual ~Task() = default;
  Task(const Task&) = delete;
  Task& operator=(const Task&) = delete;

  // Runs on the stream's worker. Long waits must go through the stream's park(), so that they can be ended.
  virtual aclError run(Stream& stream) = 0;
  // Says that the task will not run: its stream was stopped with this code.
  virtual void dropped(aclError) {}
  // What it does. Asked only while somebody watches (observer.h), on the worker, right before it runs; in
  // lazy mode also by the thread that submits it.
  virtual void describe(TaskFacts& facts) const { facts.name = what; }

  // For captured tasks: the type and what goes with it (acl_rt.h); left alone: ACL_MODEL_RI_TASK_DEFAULT.
  virtual void read_parameters(aclmdlRITaskParams&) const {}
  // The same task with other parameters; null: this kind is frozen once captured.
  virtual std::shared_ptr<Task> with_parameters(const aclmdlRITaskParams&) const { return nullptr; }
  // Whether an update of a task group may put another task of the same name in its place.
  virtual bool may_be_updated() const { return false; }

  virtual bool is_copy() const { return false; }
  // Of a task that moves these bytes and does nothing else; null: any other.
  virtual const Copy* as_copy() const { return nullptr; }
  virtual bool is_host_function() const { return false; }
  // It waits for nothing, and is done in less time than it takes to wake a thread.
  virtual bool is_brief() const { return false; }
  // A word that somebody may wait for: a value write, or a copy of 8 bytes.
  virtual bool writes_flag() const { return false; }

  const char* const what;  // for messages and traces
};

// A task made of a callable aclError(Stream&).
template <class Body>
class BodyTask final : public Task {
 public:
  BodyTask(const char* what, Body body) : Task(what), body_(std::move(body)) {}
  aclError run(Stream& stream) override { return body_(stream); }

 private:
  Body body_;
};

// The same with a callable void(TaskFacts&) that says what it does.
template <class Body, class Facts>
class DescribedTask final : public Task {
 public:
  DescribedTask(const char* what, Body body, Facts facts)
      : Task(what), body_(std::move(body)), facts_(std::move(facts)) {}
  aclError run(Stream& stream) override { return body_(stream); }
  void describe(TaskFacts& facts) const override {
    facts.name = what;
    facts_(facts);
  }

 private:
  Body body_;
  Facts facts_;
};

template <class Body>
std::shared_ptr<Task> make_task(const char* what, Body body) {
  return std::make_shared<BodyTask<Body>>(what, std::move(body));
}

template <class Body, class Facts>
std::shared_ptr<Task> make_task(const char* what, Body body, Facts facts) {
  return std::make_shared<DescribedTask<Body, Facts>>(what, std::move(body), std::move(facts));
}

// For tasks of which only the kind matters.
inline auto of_kind(TaskKind kind) {
  return [kind](TaskFacts& facts) { facts.kind = kind; };
}

}  // namespace emu
