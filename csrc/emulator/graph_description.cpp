// What a graph looks like: for people, and as the Chrome trace events that torch_npu's tools read.

#include <cinttypes>

#include "emulator/error.h"
#include "emulator/graph.h"
#include "emulator/stream.h"

namespace emu {
namespace {

uint64_t number(const void* handle) { return reinterpret_cast<uint64_t>(handle); }

aclmdlRITaskParams parameters_of(const Task& task) {
  aclmdlRITaskParams parameters{};
  task.read_parameters(parameters);
  return parameters;
}

// Not of compute: it would look at the data that it works on, which may be gone.
TaskFacts facts_of(const Task& task, const aclmdlRITaskParams& parameters) {
  TaskFacts facts;
  if (parameters.type != ACL_MODEL_RI_TASK_KERNEL) task.describe(facts);
  return facts;
}

const char* type_name(aclmdlRITaskType type) {
  switch (type) {
    case ACL_MODEL_RI_TASK_KERNEL:
      return "KERNEL";
    case ACL_MODEL_RI_TASK_EVENT_RECORD:
      return "EVENT_RECORD";
    case ACL_MODEL_RI_TASK_EVENT_WAIT:
      return "EVENT_WAIT";
    case ACL_MODEL_RI_TASK_EVENT_RESET:
      return "EVENT_RESET";
    case ACL_MODEL_RI_TASK_VALUE_WRITE:
      return "MEM_WRITE_VALUE";
    case ACL_MODEL_RI_TASK_VALUE_WAIT:
      return "MEM_WAIT_VALUE";
    default:
      return "DEFAULT";
  }
}

// Records and waits that belong together have the same number at the end of their names.
std::string name_of(const Task& task, const aclmdlRITaskParams& parameters, const TaskFacts& facts) {
  switch (parameters.type) {
    case ACL_MODEL_RI_TASK_EVENT_RECORD:
    case ACL_MODEL_RI_TASK_EVENT_WAIT:
    case ACL_MODEL_RI_TASK_EVENT_RESET:
      return text("%s_%" PRIu64, type_name(parameters.type),
                  facts.sync == nullptr ? 0 : facts.sync->number());
    case ACL_MODEL_RI_TASK_VALUE_WRITE:
      return text("MEM_WRITE_VALUE_%" PRIu64, number(parameters.valueWriteTaskParams.devAddr));
    case ACL_MODEL_RI_TASK_VALUE_WAIT:
      return text("MEM_WAIT_VALUE_%" PRIu64, number(parameters.valueWaitTaskParams.devAddr));
    default:
      return task.what;
  }
}

void add(std::string& out, const char* label, const std::vector<Range>& ranges) {
  for (const Range& range : ranges) {
    out += text(R"(%s"%s": "0x%zx", "%s Bytes": %zu)", out.empty() ? "" : ", ", label, range.address, label,
                range.width * range.rows);
  }
}

std::string words_of(const TaskFacts& facts) {
  std::string out;
  if (facts.kind != TaskKind::Copy && facts.kind != TaskKind::Fill) return out;
  add(out, "Source", facts.reads);
  add(out, "Destination", facts.writes);
  return out;
}

std::string words_of(const aclmdlRITaskParams& parameters, const TaskFacts& facts) {
  switch (parameters.type) {
    case ACL_MODEL_RI_TASK_EVENT_RECORD:
      return text(R"("Event": "%p", "Event Flag": %u)", parameters.eventRecordTaskParams.event,
                  parameters.eventRecordTaskParams.eventFlag);
    case ACL_MODEL_RI_TASK_EVENT_WAIT:
      return text(R"("Event": "%p", "Event Flag": %u)", parameters.eventWaitTaskParams.event,
                  parameters.eventWaitTaskParams.eventFlag);
    case ACL_MODEL_RI_TASK_EVENT_RESET:
      return text(R"("Event": "%p", "Event Flag": %u)", parameters.eventResetTaskParams.event,
                  parameters.eventResetTaskParams.eventFlag);
    case ACL_MODEL_RI_TASK_VALUE_WRITE:
      return text(R"("Address": "%p", "Value": %)" PRIu64, parameters.valueWriteTaskParams.devAddr,
                  parameters.valueWriteTaskParams.value);
    case ACL_MODEL_RI_TASK_VALUE_WAIT:
      return text(R"("Address": "%p", "Value": %)" PRIu64 R"(, "Flag": %u)",
                  parameters.valueWaitTaskParams.devAddr, parameters.valueWaitTaskParams.value,
                  parameters.valueWaitTaskParams.flag);
    default:
      return words_of(facts);
  }
}

std::string quoted(const std::string& words) {
  std::string out = "\"";
  for (const char c : words) {
    if (c == '"' || c == '\\') out += '\\';
    if (static_cast<unsigned char>(c) >= ' ') out += c;
  }
  return out + '"';
}

}  // namespace

std::string Graph::describe_json() const {
  std::lock_guard lock(mutex_);
  const std::string process = quoted(name_.empty() ? text("graph %u", id) : name_);
  std::string out = "[";
  for (const Lane& lane : lanes_) {
    for (const Node& node : lane.nodes) {
      const auto parameters = parameters_of(*node.task);
      const auto facts = facts_of(*node.task, parameters);
      out += text(R"(%s{"name": %s, "ph": "X", "pid": %s, "tid": "stream%d", "ts": %u, "dur": 0.5, "args": )",
                  out.size() == 1 ? "\n" : ",\n", quoted(name_of(*node.task, parameters, facts)).c_str(),
                  process.c_str(), lane.own->id, node.sequence);
      out += text(R"({"Model Id": %u, "Stream Id": %d, "Task Id": %u, "Task Type": "%s", "Call": "%s")", id,
                  lane.own->id, node.sequence, type_name(parameters.type), node.task->what);
      if (node.group != nullptr) out += text(R"(, "Task Group": "%p")", node.group);
      if (const std::string words = words_of(parameters, facts); !words.empty()) out += ", " + words;
      out += "}}";
    }
  }
  return out + "\n]\n";
}

std::string Graph::describe() const {
  std::lock_guard lock(mutex_);
  std::string out = text("graph %u %s, %zu streams\n", id, name_.c_str(), lanes_.size());
  for (const Lane& lane : lanes_) {
    out += text("  stream %d\n", lane.own->id);
    for (const Node& node : lane.nodes) {
      const auto parameters = parameters_of(*node.task);
      const auto facts = facts_of(*node.task, parameters);
      out += text("    %4u %s %s\n", node.sequence, name_of(*node.task, parameters, facts).c_str(),
                  words_of(parameters, facts).c_str());
    }
  }
  return out;
}

}  // namespace emu
