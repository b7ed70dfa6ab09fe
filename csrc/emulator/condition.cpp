// Conditional tasks of graphs: a word in device memory chooses at each replay which branch runs, or how
// often.

#include "emulator/condition.h"

#include <atomic>
#include <vector>

#include "emulator/context.h"
#include "emulator/device.h"
#include "emulator/error.h"
#include "emulator/graph.h"
#include "emulator/runtime.h"
#include "emulator/stream.h"

namespace emu {
namespace {

constexpr size_t kPage = 4096;

std::atomic_ref<uint64_t> word_at(uintptr_t address) {
  return std::atomic_ref(*reinterpret_cast<uint64_t*>(Runtime::get().memory.alias(address)));
}

class ConditionalTask final : public Task {
 public:
  ConditionalTask(std::shared_ptr<Condition> condition, aclmdlRICondTaskType type,
                  std::vector<std::shared_ptr<Graph>> branches)
      : Task("aclmdlRIAddCondTask"),
        condition_(std::move(condition)),
        type_(type),
        branches_(std::move(branches)) {}

  aclError run(Stream& stream) override {
    if (type_ == ACL_MODEL_RI_COND_TYPE_WHILE) {
      while (condition_->read() != 0) {
        if (stream.stopping()) return ACL_ERROR_RT_STREAM_ABORT;
        if (const aclError code = branches_[0]->run(stream); code != ACL_SUCCESS) return code;
      }
      return ACL_SUCCESS;
    }
    const uint64_t value = condition_->read();
    const uint64_t branch = type_ == ACL_MODEL_RI_COND_TYPE_SWITCH ? value : value != 0 ? 0 : 1;
    return branch < branches_.size() ? branches_[branch]->run(stream) : ACL_SUCCESS;
  }

 private:
  const std::shared_ptr<Condition> condition_;
  const aclmdlRICondTaskType type_;
  const std::vector<std::shared_ptr<Graph>> branches_;
};

}  // namespace

Condition::Condition(std::weak_ptr<Graph> graph, Device& device, uint64_t value, bool restored)
    : graph(std::move(graph)), device_(device), value_(value), restored_(restored) {
  device_.book(kPage);
  try {
    address_ = Runtime::get().memory.create(Place::Device, sizeof(uint64_t), kPage, device_.id)->base;
  } catch (...) {
    device_.unbook(kPage);
    throw;
  }
}

Condition::~Condition() {
  if (Runtime::get().memory.release(Place::Device, address_) != nullptr) device_.unbook(kPage);
}

void Condition::restart() const {
  if (restored_) word_at(address_).store(value_);
}

uint64_t Condition::read() const { return word_at(address_).load(); }

std::shared_ptr<Condition> Graph::add_condition(uint64_t value, bool restored) {
  std::lock_guard lock(mutex_);
  if (state() != kCapturing) fail(ACL_ERROR_RT_STREAM_NOT_CAPTURED, "graph %u is not being captured", id);
  conditions_.push_back(
      std::make_shared<Condition>(weak_from_this(), origin_->context().device, value, restored));
  return conditions_.back();
}

std::vector<aclmdlRI> Graph::add_conditional(Stream& stream, const std::shared_ptr<Condition>& condition,
                                             aclmdlRICondTaskType type, size_t count) {
  std::vector<std::shared_ptr<Graph>> branches;
  std::vector<aclmdlRI> handles;
  for (size_t i = 0; i < count; ++i) {
    branches.push_back(std::make_shared<Graph>(weak_from_this()));
    branches.back()->handle = Runtime::get().graphs.add(branches.back());
    handles.push_back(branches.back()->handle);
  }
  {
    std::lock_guard lock(mutex_);
    branches_.insert(branches_.end(), branches.begin(), branches.end());
  }
  add(stream, std::make_shared<ConditionalTask>(condition, type, std::move(branches)));
  return handles;
}

void Graph::check_branches_ended() const {
  std::lock_guard lock(mutex_);
  for (const auto& branch : branches_) {
    if (!branch->is_captured_now()) continue;
    fail(ACL_ERROR_RT_SUB_ACLGRAPH_IS_CAPTURING, "graph %u, a branch of graph %u, is still being captured",
         branch->id, id);
  }
}

}  // namespace emu
