"""Streams, events, values, host functions, handles, contexts."""

from __future__ import annotations

from tests.mutations.mutant import Mutant

STREAMS, EVENTS, VALUES = "test_streams.py", "test_events.py", "test_values.py"

MUTANTS = [
    # --- a stream ---
    Mutant(
        "a submit returns before the work runs",
        "emulator/stream.cpp",
        "  if (is_needed) need(number + 1);\n",
        "  progress_.wait([&] { return is_done(number + 1) || closed_.load(); }, std::nullopt);\n",
        f"{STREAMS} -k submit_returns_before",
    ),
    Mutant(
        "a stream runs in order",
        "emulator/stream.cpp",
        "    auto task = std::move(ring_[number % kDepth]);",
        "    if (submitted_.load() > number + 1)\n"
        "      std::swap(ring_[number % kDepth], ring_[(number + 1) % kDepth]);\n"
        "    auto task = std::move(ring_[number % kDepth]);",
        f"{STREAMS} -k runs_in_order",
    ),
    Mutant(
        "a queue takes no more than 2048 tasks",
        "emulator/stream.cpp",
        "finished_.load(std::memory_order_acquire) >= kDepth) [[unlikely]] {",
        "finished_.load(std::memory_order_acquire) >= kDepth + 1) [[unlikely]] {",
        f"{STREAMS} -k submitter_blocks",
    ),
    Mutant(
        "a queue takes 2048 tasks",
        "emulator/stream.cpp",
        "  if (number - finished_.load(std::memory_order_acquire) >= kDepth) [[unlikely]] {",
        "  if (number - finished_.load() >= kDepth - 1)\n"
        "    progress_.wait([&] { return is_done(number + 2 - kDepth) || closed_.load(); }, std::nullopt);\n"
        "  if (number - finished_.load(std::memory_order_acquire) >= kDepth) [[unlikely]] {",
        f"{STREAMS} -k submitter_blocks",
    ),
    Mutant(
        "a full queue blocks its submitter",
        "emulator/stream.cpp",
        "    need(number);\n",
        '    fail(ACL_ERROR_RT_RESOURCE_ALLOC_FAIL, "full");\n',
        f"{STREAMS} -k submitter_blocks",
    ),
    Mutant(
        "a submitter that blocks hears that its context stopped",
        "emulator/stream.cpp",
        "is_stopped(); }, std::nullopt);\n    check_takes_work();\n",
        "is_stopped(); }, std::nullopt);\n",
        f"{STREAMS} -k submitter_that_blocks",
    ),
    Mutant(
        "an abort ends the task that runs",
        "emulator/stream.cpp",
        "drop_before_.load(std::memory_order_relaxed) > finished_.load(std::memory_order_relaxed)",
        "false",
        f"{STREAMS} -k abort_ends",
    ),
    Mutant(
        "a stop ends the task that runs",
        "emulator/stream.cpp",
        "  return closed_.load(std::memory_order_relaxed) || halted_.load(std::memory_order_relaxed) ||",
        "  return closed_.load(std::memory_order_relaxed) ||",
        f"{STREAMS} -k stop",
    ),
    Mutant(
        "an aborted device tells another code than an aborted stream",
        "emulator/stream_calls.cpp",
        "stream->abort(ACL_ERROR_RT_DEVICE_TASK_ABORT)",
        "stream->abort()",
        f"{STREAMS} -k abort_of_a_device",
    ),
    Mutant(
        "a sync that times out cancels nothing",
        "emulator/stream.cpp",
        "  if (!in_time) fail(",
        "  if (!in_time) abort();\n  if (!in_time) fail(",
        f"{STREAMS} -k sync_with_timeout",
    ),
    Mutant(
        "destroy waits for queued work",
        "emulator/stream_calls.cpp",
        "      ended->synchronize(std::nullopt);\n",
        "",
        f"{STREAMS} -k destroy_stream_waits",
    ),
    Mutant(
        "a device has no more than 1984 streams",
        "emulator/context.cpp",
        "  if (device.streams.fetch_add(1) >= Device::kMaxStreams) {",
        "  if (device.streams.fetch_add(1) > Device::kMaxStreams) {",
        f"{STREAMS} -k 1984",
    ),
    # --- failure modes ---
    Mutant(
        "a failing task of mode 1 stops all streams of its context",
        "emulator/stream.cpp",
        "    context_->stop(code, why);\n",
        "    untold_failure_.store(code);\n    halt();\n",
        f"{STREAMS} -k mode_1",
    ),
    Mutant(
        "a stopped context takes no work",
        "emulator/stream.cpp",
        "  if (const aclError code = context_->refusal(); code != ACL_SUCCESS) [[unlikely]] {",
        "  if (const aclError code = ACL_SUCCESS; code != ACL_SUCCESS) [[unlikely]] {",
        f"{STREAMS} -k mode_1",
    ),
    Mutant(
        "a failing task of mode 0 stops nothing",
        "emulator/stream.cpp",
        "  if (failure_mode.load() == ACL_STOP_ON_FAILURE && ",
        "  if (",
        f"{STREAMS} -k mode_0",
    ),
    Mutant(
        "a failing task stops no other context",
        "emulator/stream.cpp",
        "    context_->stop(code, why);\n",
        "    for (const auto& context : Runtime::get().contexts.all()) context->stop(code, why);\n",
        f"{STREAMS} -k other_contexts",
    ),
    Mutant(
        "the failure mode is set once",
        "emulator/stream_calls.cpp",
        "  if (stream.failure_mode_set.exchange(true)) {",
        "  if (false) {",
        f"{STREAMS} -k set_once",
    ),
    # --- contexts and handles ---
    Mutant(
        "a thread without a device gets 107002",
        "emulator/entry.cpp",
        "  if (self.context == nullptr) {\n    fail(\n        ACL_ERROR_RT_CONTEXT_NULL,",
        "  if (self.context == nullptr) {\n    fail(\n        ACL_ERROR_RT_PARAM_INVALID,",
        "test_devices.py -k without_a_device",
    ),
    Mutant(
        "a stream is used in its own context only",
        "emulator/context.cpp",
        "  if (&stream->context() != this) {",
        "  if (&stream->context().device != &device) {",
        "test_runtime.py -k 107003",
    ),
    Mutant(
        "an event is recorded on its own device only",
        "emulator/event_calls.cpp",
        "  if (event.device.id == on) return;",
        "  if (event.device.id >= 0) return;",
        f"{EVENTS} -k own_device_only",
    ),
    Mutant(
        "a hardware event is awaited on its own device only",
        "emulator/event_calls.cpp",
        "  if (!event->ex) check_same_device(*event, *stream);\n",
        "",
        f"{EVENTS} -k own_device_only",
    ),
    Mutant(
        "a reset takes one set back",
        "emulator/device.cpp",
        "sets_ = all ? 0 : sets_ - 1;",
        "sets_ = 0;",
        "test_runtime.py -k reset_ends",
    ),
    Mutant(
        "a forced reset takes all sets back",
        "emulator/device.cpp",
        "sets_ = all ? 0 : sets_ - 1;",
        "sets_ = sets_ - 1;",
        "test_devices.py -k forced_reset",
    ),
    Mutant(
        "a freed handle is refused, also when its place is used again",
        "emulator/handle.h",
        "if (slot.object == nullptr || slot.generation != (bits >> 28 & kGenerationMask)) return nullptr;",
        "if (slot.object == nullptr) return nullptr;",
        "test_handles.py",
    ),
    Mutant(
        "a handle of one kind is refused as another",
        "emulator/handle.h",
        "if (bits >> 52 != kKind || ",
        "if (",
        "test_handles.py",
    ),
    # --- events ---
    Mutant(
        "a wait for an Ex event binds to the latest record at the call",
        "emulator/event.cpp",
        "  auto record = ex ? std::make_shared<Record>() : latest();",
        "  auto record = latest();\n"
        "  if (ex && record == nullptr) record = std::make_shared<Record>();\n"
        "  if (ex) record->settle(Record::kPending);",
        f"{EVENTS} -k binds",
    ),
    Mutant(
        "an Ex event that was never recorded holds nobody up",
        "emulator/event.cpp",
        "  if (record == nullptr) return;  // an Ex event that was never recorded holds nobody up\n",
        "  if (record == nullptr) {\n    std::lock_guard lock(mutex_);\n"
        "    latest_ = record = std::make_shared<Record>();\n  }\n",
        f"{EVENTS} -k before_any_record",
    ),
    Mutant(
        "a record that is waited for outlives its event",
        "emulator/event_calls.cpp",
        "    Runtime::get().events.remove(event);\n",
        "    if (auto record = event_of(event)->latest()) record->settle(Record::kDone);\n"
        "    Runtime::get().events.remove(event);\n",
        f"{EVENTS} -k destroyed_right_after",
    ),
    Mutant(
        "a record releases streams that wait by then, whatever is reset after it",
        "emulator/event.cpp",
        "    if (state.load() == kDone || times_done.load() != before) break;",
        "    if (state.load() == kDone) break;",
        f"{EVENTS} -k reset_follows_at_once",
    ),
    Mutant(
        "a record releases the host that waits by then, whatever is reset after it",
        "emulator/event.cpp",
        "    if (state.load() != kPending || times_done.load() != before) break;",
        "    if (state.load() != kPending) break;",
        f"{EVENTS} -k reset_at_once",
    ),
    Mutant(
        "only events made with SYNC are waited for by streams",
        "emulator/event_calls.cpp",
        '  check_flag(*event, ACL_EVENT_SYNC | ACL_EVENT_EXTERNAL | ACL_EVENT_IPC, "ACL_EVENT_SYNC");\n',
        "",
        f"{EVENTS} -k without_sync",
    ),
    Mutant(
        "the default timeout of waits is for events",
        "emulator/event_calls.cpp",
        "wait_event(stream, event, Runtime::get().wait_timeout_s.load())",
        "wait_event(stream, event, 0)",
        f"{EVENTS} -k op_wait_timeout_is",
    ),
    # --- values ---
    Mutant(
        "GEQ is a signed difference",
        "emulator/value.cpp",
        "return static_cast<int64_t>(current - value) >= 0;",
        "return current >= value;",
        f"{VALUES} -k modes",
    ),
    Mutant(
        "EQ compares 64 bits",
        "emulator/value.cpp",
        "return current == value;",
        "return static_cast<uint32_t>(current) == static_cast<uint32_t>(value);",
        f"{VALUES} -k modes",
    ),
    Mutant(
        "AND is any common bit",
        "emulator/value.cpp",
        "return (current & value) != 0;",
        "return (current & value) == value;",
        f"{VALUES} -k modes",
    ),
    Mutant(
        "NOR is about both words",
        "emulator/value.cpp",
        "return ~(current | value) != 0;",
        "return ~current != 0;",
        f"{VALUES} -k modes",
    ),
    Mutant(
        "a value wait never times out",
        "emulator/value.cpp",
        "    for (int naps = 0; !stream.stopping(); ++naps) {\n",
        "    for (int naps = 0; !stream.stopping(); ++naps) {\n"
        "      if (naps > 5) return ACL_ERROR_RT_WAIT_TIMEOUT;\n",
        f"{EVENTS} -k op_wait_timeout_is",
    ),
    Mutant(
        "a value write releases what was written before it",
        "emulator/value.cpp",
        "  std::atomic_ref(*word).store(value, std::memory_order_release);\n",
        "  std::atomic_ref(*word).store(value, std::memory_order_relaxed);\n",
        f"{VALUES}",
        equivalent="on x86-64 every store releases; on aarch64 the fence that follows comes too late, but the"
        " window is too small for a test to be sure to hit it",
    ),
    Mutant(
        "a value write is for device memory",
        "emulator/value.cpp",
        "  if (block == nullptr || block->place == Place::Pinned || !block->contains(address, 8)) {",
        "  if (block == nullptr || !block->contains(address, 8)) {",
        f"{VALUES} -k check_their_arguments",
    ),
    Mutant(
        "a value write writes 8 bytes",
        "emulator/value.cpp",
        "  std::atomic_ref(*word).store(value, std::memory_order_release);\n",
        "  std::atomic_ref(*word).store(value, std::memory_order_release);\n  word[1] = 0;\n",
        f"{VALUES} -k eight_bytes",
    ),
    # --- host functions ---
    Mutant(
        "host functions of a context run one at a time",
        "emulator/host_function.cpp",
        "  aclError run(Stream& stream) override { return caller_->call(stream, *this); }",
        "  aclError run(Stream&) override { return invoke(); }",
        f"{VALUES} -k one_at_a_time",
    ),
    Mutant(
        "tasks between two host functions run",
        "emulator/stream.cpp",
        "    run(*taken);\n",
        "",
        "test_host_functions.py -k brief_tasks",
    ),
    Mutant(
        "a task between two host functions that fails stops its context",
        "emulator/stream.cpp",
        "    run(*taken);\n    if (is_looked_at()) return nullptr;",
        "    run(*taken);",
        "test_host_functions.py -k fails_as_itself",
    ),
    Mutant(
        "nothing is submitted from inside a host function",
        "emulator/entry.cpp",
        "  if (needs == Needs::Work && self.in_host_function) {",
        "  if (false) {",
        f"{VALUES} -k must_not",
    ),
    Mutant(
        "an unknown operator fails",
        "emulator/unsupported.cpp",
        "  return ENTER(aclopCompileAndExecute, { return ::emu::never(); });",
        "  return ACL_SUCCESS;",
        "test_runtime.py -k unimplemented",
    ),
    Mutant(
        "a failed call leaves its message to its own thread",
        "emulator/entry.cpp",
        "  self.last_error = error.code;\n",
        "",
        "test_errors.py -k peek",
    ),
]
