#include "emulator/context.h"

#include <algorithm>

#include "emulator/capture.h"
#include "emulator/device.h"
#include "emulator/error.h"
#include "emulator/faults.h"
#include "emulator/host_function.h"
#include "emulator/runtime.h"
#include "emulator/signal.h"
#include "emulator/stream.h"

namespace emu {

std::shared_ptr<Context> Context::create(Device& device, bool primary) {
  std::shared_ptr<Context> context(new Context(device, primary));
  context->handle = Runtime::get().contexts.add(context);
  context->default_stream_ = context->add_stream(0, 0);
  context->default_stream_->make_default();
  return context;
}

Context::Context(Device& device, bool primary)
    : device(device), primary(primary), host_functions(std::make_shared<HostCaller>()) {}

Context::~Context() = default;

std::shared_ptr<Stream> Context::add_stream(uint32_t priority, uint32_t flags) {
  if (const aclError code = refusal(); code != ACL_SUCCESS) {
    fail(code, "the context stopped after a failed task (%s)", failure_message().c_str());
  }
  if (is_armed(bit(Fault::Limit))) Runtime::get().faults->take("streams", 1, ACL_ERROR_RT_NO_STREAM_RESOURCE);
  if (device.streams.fetch_add(1) >= Device::kMaxStreams) {
    give_back_stream();
    fail(ACL_ERROR_RT_NO_STREAM_RESOURCE,
         "EE1023: device %d has its %d streams in use, some perhaps by graphs", device.id,
         Device::kMaxStreams);
  }
  auto stream = std::make_shared<Stream>(shared_from_this(), priority, flags);
  stream->handle = Runtime::get().streams.add(stream);
  std::lock_guard lock(mutex_);
  streams_.push_back(stream);
  return stream;
}

void Context::give_back_stream() {
  device.streams.fetch_sub(1);
  if (is_armed(bit(Fault::Limit))) Runtime::get().faults->give_back("streams", 1);
}

void Context::remove_stream(const std::shared_ptr<Stream>& stream) {
  if (Runtime::get().streams.remove(stream->handle) == nullptr) return;  // somebody else was faster
  give_back_stream();
  std::lock_guard lock(mutex_);
  std::erase(streams_, stream);
}

std::shared_ptr<Stream> Context::stream(aclrtStream handle) {
  if (handle == nullptr) {
    std::lock_guard lock(mutex_);
    if (default_stream_ == nullptr) fail(ACL_ERROR_RT_CONTEXT_NULL, "the current context was destroyed");
    return default_stream_;
  }
  auto stream = Runtime::get().streams.get(handle);
  if (&stream->context() != this) {
    fail(ACL_ERROR_RT_STREAM_CONTEXT,
         "stream %p belongs to another context (of device %d) than the current one (%d)", handle,
         stream->context().device.id, device.id);
  }
  if (stream->is_owned()) {
    fail(ACL_ERROR_RT_STREAM_NOT_SUPPORT_OPERA, "stream %d is part of a graph, and runs with it only",
         stream->id);
  }
  return stream;
}

std::vector<std::shared_ptr<Stream>> Context::streams() const {
  std::lock_guard lock(mutex_);
  return streams_;
}

void Context::stop(aclError code, const std::string& why) {
  {
    std::lock_guard lock(mutex_);
    if (failure_.load() != ACL_SUCCESS) return;
    failure_message_ = why;
    failure_.store(code);
  }
  for (const auto& stream : streams()) stream->interrupt();
}

std::string Context::failure_message() const {
  if (failure_.load() == ACL_SUCCESS && is_armed(bit(Fault::Lose)) && lost() != ACL_SUCCESS) {
    return text("device %d is lost (a fault says so)", device.id);
  }
  std::lock_guard lock(mutex_);
  return failure_message_;
}

aclError Context::lost() const { return Runtime::get().faults->lost(device.id); }

aclError Context::refusal() const {
  const aclError code = failure();
  return failure_.load() == ACL_SUCCESS && !device.loss_told.load() ? ACL_SUCCESS : code;
}

void Context::synchronize(int32_t timeout_ms) {
  const auto all = streams();
  Runtime::get().captures->check_device_wait(device);
  const Deadline deadline = deadline_in_ms(timeout_ms);
  for (const auto& stream : all) stream->need_all();
  for (const auto& stream : all) stream->synchronize(deadline);
}

void Context::destroy(Deadline deadline) {
  if (destroyed_.exchange(true)) return;
  Runtime::get().captures->abandon(*this);
  const auto ended = streams();
  for (const auto& stream : ended) stream->close();
  for (const auto& stream : ended) {
    stream->wait_for_worker(deadline);
    remove_stream(stream);
  }
  std::lock_guard lock(mutex_);
  default_stream_ = nullptr;
  Runtime::get().contexts.remove(handle);
}

}  // namespace emu
