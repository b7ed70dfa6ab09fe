#pragma once

#include <memory>

#include "emulator/acl_headers.h"

namespace emu {

class Stream;

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

template <class Body>
std::shared_ptr<Task> make_task(const char* what, Body body) {
  return std::make_shared<BodyTask<Body>>(what, std::move(body));
}

}  // namespace emu
