"""Lazy mode, random interleaving, leaks, simulated time, products, the end of a process, random numbers."""

from __future__ import annotations

from tests.mutations.mutant import Mutant

LAZY, TIME = "test_lazy.py", "test_simulated_time.py"

MUTANTS = [
    # --- lazy mode ---
    Mutant(
        "nothing runs before somebody waits",
        "emulator/stream.cpp",
        "      needed_(lazy::is_on() ? 0 : UINT64_MAX),",
        "      needed_(UINT64_MAX),",
        f"{LAZY} -k nothing_runs",
    ),
    Mutant(
        "a wait sets off its own stream only",
        "emulator/stream.cpp",
        "  const uint64_t target = submitted_.load();\n  need(target);\n",
        "  const uint64_t target = submitted_.load();\n  lazy::need_everything();\n",
        f"{LAZY} -k own_stream_only",
    ),
    Mutant(
        "a wait for a record sets off what is before it",
        "emulator/event.cpp",
        "  if (const auto stream = stream_.lock()) stream->need(number_ + 1);\n",
        "",
        f"{LAZY} -k event",
    ),
    Mutant(
        "what a peer sees runs at once",
        "emulator/stream.cpp",
        "  if (is_needed) need(number + 1);\n",
        "",
        f"{LAZY} -k 'peer or two_lazy'",
    ),
    Mutant(
        "a task that ends a wait runs at once, also when the wait was there first",
        "emulator/value.cpp",
        "lazy::is_on() && lazy::need_writers_of(",
        "lazy::is_on() && naps == 0 && lazy::need_writers_of(",
        f"{LAZY} -k while_a_task_waits",
    ),
    Mutant(
        "what is behind a wait in its own stream does not end it",
        "emulator/lazy.cpp",
        "if (stream.get() != &waiting && stream->",
        "if (stream->",
        f"{LAZY} -k own_stream_ends_nothing",
    ),
    # --- random interleaving ---
    Mutant(
        "the same seed takes the same decisions",
        "emulator/interleaving.cpp",
        "    : state_(mix(mix(seed) ^ mix(",
        "    : state_(mix(reinterpret_cast<uintptr_t>(this) ^ mix(",
        "test_interleaving.py -k same_seed",
    ),
    Mutant(
        "another seed takes others",
        "emulator/interleaving.cpp",
        "    : state_(mix(mix(seed) ^ mix(",
        "    : state_(mix(mix(seed & 0) ^ mix(",
        "test_interleaving.py -k same_seed",
    ),
    Mutant(
        "copies that overlap move at once",
        "emulator/copy_calls.cpp",
        "    if (pieces == 1 || overlaps)",
        "    if (pieces == 1)",
        "test_interleaving.py -k overlapping",
    ),
    Mutant(
        "large copies are seen half done",
        "emulator/interleaving.cpp",
        "  if (bytes < 2 * kLeastPiece) return 1;\n",
        "  return 1;\n",
        "test_interleaving.py -k stands_still",
    ),
    # --- leaks ---
    Mutant(
        "memory that is left is told",
        "emulator/leaks.cpp",
        "    for (const auto& block : runtime.memory.all()) report.add(",
        "    for (const auto& block : std::vector<std::shared_ptr<Block>>()) report.add(",
        "test_leaks.py -k 'left or alone'",
    ),
    Mutant(
        "events that are left are told",
        "emulator/leaks.cpp",
        '    runtime.events.each([&](const Event&, const auto& made) { report.add("events", made, 0); });\n',
        "",
        "test_leaks.py -k 'left or alone'",
    ),
    Mutant(
        "streams that are left are told",
        "emulator/leaks.cpp",
        "      if (!stream.is_default() && !stream.is_owned()) report.add(",
        "      if (stream.is_default() && stream.is_owned()) report.add(",
        "test_leaks.py -k 'left or alone'",
    ),
    Mutant(
        "the default stream is its context's, and no leak of its own",
        "emulator/leaks.cpp",
        "      if (!stream.is_default() && !stream.is_owned()) report.add(",
        "      if (!stream.is_owned()) report.add(",
        "test_leaks.py -k 'left or alone'",
    ),
    Mutant(
        "nothing is said of a clean program",
        "emulator/leaks.cpp",
        "    if (!report.is_clean()) std::fputs",
        "    std::fputs",
        "test_leaks.py -k clean",
    ),
    Mutant(
        "leaks are told when asked for",
        "emulator/leaks.cpp",
        "  if (!runtime.config.leaks) return;\n",
        "",
        "test_leaks.py -k asked_for",
    ),
    # --- the end of a process ---
    Mutant(
        "a process ends while its streams wait",
        "emulator/runtime.cpp",
        "  for (const auto& stream : streams.all()) stream->close();\n",
        "  for (const auto& stream : streams.all()) stream->synchronize(std::nullopt);\n",
        "test_ending.py -k whatever",
    ),
    Mutant(
        "a forked child does not wait for threads that it has not",
        "emulator/runtime.cpp",
        "  if (forked()) return;\n  report_leaks();",
        "  report_leaks();",
        "test_ending.py -k forked_child",
    ),
    Mutant(
        "a forked child is refused",
        "emulator/entry.cpp",
        "  if (runtime.forked()) {\n",
        "  if (false) {\n",
        "test_runtime.py -k forked_child",
    ),
    # --- simulated time ---
    Mutant(
        "a stream does not start before its task was submitted",
        "emulator/simulated_time.cpp",
        "  lane.clock = std::max(lane.clock, lane.submitted.front());\n",
        "",
        TIME,
    ),
    Mutant(
        "a wait ends after the record",
        "emulator/simulated_time.cpp",
        "    if (facts.sync != nullptr) reached = facts.sync->simulated_ns.load();\n",
        "",
        TIME,
    ),
    Mutant(
        "a value wait ends after the write",
        "emulator/simulated_time.cpp",
        "    reached = stamp_of(facts.word);\n",
        "",
        TIME,
    ),
    Mutant(
        "the host that waited is not before the stream",
        "emulator/simulated_time.cpp",
        "  if (const auto lane = lanes_.find(&stream); lane != lanes_.end())\n"
        "    clock = std::max(clock, lane->second.clock);\n",
        "",
        TIME,
    ),
    Mutant(
        "copies over one link share it",
        "emulator/simulated_time.cpp",
        "  return links_[device.physical_id][link].take(ready, cost.moving_ns) + cost.moving_ns;\n",
        "  return ready + cost.moving_ns;\n",
        TIME,
    ),
    # --- products ---
    Mutant(
        "a name that means nothing ends the process",
        "emulator/profile.cpp",
        '  give_up(variable, value, "A2, A3, 950, 950PR or 950DT");\n',
        "  return Profile::Product::A2;\n",
        "test_profiles.py -k unknown",
    ),
    Mutant(
        "950DT has no notifies between processes",
        "emulator/notify_calls.cpp",
        "  if (profile.has_ipc_sync()) return;\n",
        "  return;\n",
        "test_notify.py -k what_a_product",
    ),
    # --- aten compute ---
    Mutant(
        "a graph draws other random numbers at each replay",
        "emulator_aten/random.cpp",
        "  const bool captured = captured_seed_.defined();\n",
        "  const bool captured = false;\n",
        "test_emulator_graphs.py -k 'draw or dropout or generator'",
    ),
    Mutant(
        "the state of a generator is read at the replay, not frozen in the capture",
        "emulator_aten/random.cpp",
        "  captured_offset_ = aliases.of(*state.offset_.ptr);\n",
        "  captured_offset_ = aliases.of(*state.offset_.ptr).clone();\n",
        "test_emulator_graphs.py -k 'draw or dropout or generator'",
    ),
    Mutant(
        "POISON gives each tensor an allocation of its own",
        "torch_llm_datadist/emulator/switch.py",
        '        os.environ[NO_CACHING] = "1"\n',
        "        pass\n",
        "test_emulator_modes.py -k allocation_per_tensor",
    ),
    # --- traces ---
    Mutant(
        "a flush has the task that told of something",
        "emulator/watch/trace.cpp",
        "  while (telling_.load() != 0 &&",
        "  while (telling_.load() < 0 &&",
        "test_traces.py -k told_of_something",
    ),
    Mutant(
        "eight bytes that are copied to a peer are a word",
        "emulator/watch/facts_json.cpp",
        "    out += word_for_a_peer(facts);",
        "    static_cast<void>(word_for_a_peer(facts));",
        "test_traces.py -k polled",
    ),
]
