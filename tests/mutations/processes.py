"""What processes share: keys, notifies, IPC events, and their deaths."""

from __future__ import annotations

from tests.mutations.mutant import Mutant

IPC, NOTIFY, IPC_EVENTS = "test_ipc.py", "test_notify.py", "test_ipc_events.py"

MUTANTS = [
    Mutant(
        "the white list is enforced",
        "emulator/ipc_import.cpp",
        "  if (slot.any_process != 0) return;\n",
        "  return;\n",
        f"{IPC} -k white_list",
    ),
    Mutant(
        "a key needs no white list with the flag for it",
        "emulator/ipc_export.cpp",
        "  slot.any_process = any_process ? 1 : 0;",
        "  slot.any_process = 0;",
        f"{IPC} -k is_the_exporters",
    ),
    Mutant(
        "an export fits its pages",
        "emulator/ipc_calls.cpp",
        "  if (address % page != 0 || size % page != 0 || size == 0) {",
        "  if (size == 0) {",
        f"{IPC} -k fit_the_pages",
    ),
    Mutant(
        "no import in the exporting process",
        "emulator/ipc_calls.cpp",
        '    if (from.pid == getpid()) fail(ACL_ERROR_RT_PARAM_INVALID, "the key was exported by this same'
        ' process");\n',
        "",
        f"{IPC} -k ones_own",
    ),
    Mutant(
        "a process that got the number of a dead exporter is not taken for it",
        "emulator/peer.cpp",
        "  if (start_time(pid) == started && alive()) return;\n",
        "  if (alive()) return;\n",
        f"{IPC} -k number_before",
    ),
    Mutant(
        "a task on memory of a dead exporter fails",
        "emulator/ipc_import.cpp",
        "  if (exporter_->alive()) return ACL_SUCCESS;\n",
        "  return ACL_SUCCESS;\n",
        f"{IPC} -k dead_exporter",
    ),
    Mutant(
        "memory of another device needs peer access",
        "emulator/ipc_import.cpp",
        "  if (physical_device_ == from.physical_id || peer_enabled) return ACL_SUCCESS;\n",
        "  return ACL_SUCCESS;\n",
        f"{IPC} -k needs_peer_access",
    ),
    Mutant(
        "memory of another device takes part in asynchronous device copies only",
        "emulator/copy_calls.cpp",
        "  if (remote && (host || kind != ACL_MEMCPY_DEVICE_TO_DEVICE || !async)) {",
        "  if (remote && host) {",
        f"{IPC} -k asynchronous_device_copies_only",
    ),
    Mutant(
        "imports of a key are counted",
        "emulator/ipc_import.cpp",
        "    ++it->second.references;\n",
        "",
        f"{IPC} -k imported_twice",
    ),
    Mutant(
        "imported memory is not exported again",
        "emulator/ipc_calls.cpp",
        "  if (block == nullptr || block->place != Place::Device) {",
        "  if (block == nullptr || block->place == Place::Pinned) {",
        f"{IPC} -k exported_again",
    ),
    Mutant(
        "keys end with their memory",
        "emulator/memory_calls.cpp",
        "    runtime.exports->revoke(base);\n",
        "",
        f"{IPC} -k exporter_freed",
    ),
    Mutant(
        "a key fills all of its 65 bytes",
        "emulator/ledger.cpp",
        "'='",
        "'\\0'",
        f"{IPC} -k 65",
    ),
    Mutant(
        "a value write wakes another process",
        "emulator/value.cpp",
        "  if (hints != nullptr && hints->waiters(block.file_offset(address)).load() == 0) return;\n",
        "  return;\n",
        "test_task_cost.py -k waiter_in_another_process",
    ),
    # --- notifies ---
    Mutant(
        "two records before a wait are one",
        "emulator/notify.cpp",
        "  word->store(1);\n",
        "  word->fetch_add(1);\n",
        f"{NOTIFY} -k two_records",
    ),
    Mutant(
        "a wait consumes the record",
        "emulator/notify.cpp",
        "  return word->compare_exchange_strong(is_set, 0);",
        "  return word->load() == is_set;",
        f"{NOTIFY} -k two_records",
    ),
    Mutant(
        "a device has 8192 notifies",
        "emulator/notify.cpp",
        "  if (ids->used.all()) {",
        "  if (ids->used.count() >= kPerDevice - 1) {",
        f"{NOTIFY} -k 8192",
    ),
    Mutant(
        "only the device that made a notify waits for it",
        "emulator/notify_calls.cpp",
        "    if (&awaited->device != &on->context().device) {",
        "    if (false) {",
        f"{NOTIFY} -k made_it_waits",
    ),
    Mutant(
        "an importer only records",
        "emulator/notify_calls.cpp",
        '  if (notify->is_imported()) fail(ACL_ERROR_RT_PARAM_INVALID, "the notify was imported: %s",'
        " kInvalidUse);\n",
        "",
        f"{NOTIFY} -k importer_only",
    ),
    Mutant(
        "a notify that a graph names is in use",
        "emulator/notify_calls.cpp",
        "    notify_of(notify)->close();\n",
        "    notify_of(notify)->close();\n"
        "    Runtime::get().notify_pool->give_back(notify_of(notify)->device, notify_of(notify)->id);\n",
        f"{NOTIFY} -k of_a_graph",
    ),
    # --- IPC events ---
    Mutant(
        "a wait before any record holds nobody up",
        "emulator/ipc_event.cpp",
        "  if (!latest(on)) return;  // never recorded: holds nobody up\n",
        '  if (!latest(on)) fail(ACL_ERROR_RT_PARAM_INVALID, "never recorded");\n',
        f"{IPC_EVENTS} -k before_any_record",
    ),
    Mutant(
        "8192 records may be open",
        "emulator/ipc_event_page.h",
        "kSlots = 8192",
        "kSlots = 8193",
        f"{IPC_EVENTS} -k 8192",
    ),
    Mutant(
        "a dead recorder's slot is free, also when its event moves on meanwhile",
        "emulator/ipc_event_page.h",
        "    while (generation_of(seen) == generation && state_of(seen) == kPending) {\n",
        "    if (generation_of(seen) == generation && state_of(seen) == kPending) {\n",
        f"{IPC_EVENTS} -k moves_on_meanwhile",
    ),
    Mutant(
        "a record that is replaced gives its slot back",
        "emulator/ipc_event.cpp",
        "  if (latest == 0) return;\n",
        "  return;\n",
        f"{IPC_EVENTS} -k use_up_nothing",
    ),
    Mutant(
        "the host hears of a record that never comes",
        "emulator/ipc_event.cpp",
        "  if (is_lost(record)) {\n",
        "  if (false) {\n",
        f"{IPC_EVENTS} -k never_comes",
    ),
]
