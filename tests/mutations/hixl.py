"""What CANN's engine promises, and what it does not."""

from __future__ import annotations

from tests.mutations.mutant import Mutant

HIXL = "test_hixl.py"

MUTANTS = [
    Mutant(
        "pieces of a batch have no order",
        "emulator_hixl/connection.cpp",
        "  for (auto desc = descs.rbegin(); desc != descs.rend(); ++desc) {\n    char* const here",
        "  std::reverse(ranges.begin(), ranges.end());\n"
        "  for (auto desc = descs.begin(); desc != descs.end(); ++desc) {\n    char* const here",
        f"{HIXL} -k 'bytes_move or no_order'",
    ),
    Mutant(
        "batches run side by side",
        "emulator_hixl/connection.h",
        "kChannels = 2",
        "kChannels = 1",
        f"{HIXL} -k does_not_wait",
    ),
    Mutant(
        "memory of the peer is reached that was registered before the connect",
        "emulator_hixl/hixl.cpp",
        "    if (!(*found)->reaches_there(desc.remote_addr, desc.len))",
        "    if (false)",
        f"{HIXL} -k 'after_the_connect or outside'",
    ),
    Mutant(
        "own memory is reached that was registered before the connect",
        "emulator_hixl/connection.cpp",
        "  return is_within(here_, address, bytes) && memory_->holds(address, bytes);",
        "  return memory_->holds(address, bytes);",
        f"{HIXL} -k after_the_connect",
    ),
    Mutant(
        "a request is gone once its end was told",
        "emulator_hixl/hixl.cpp",
        "  if (status != TransferStatus::WAITING) impl_->batches.erase(found);\n",
        "",
        f"{HIXL} -k asked_again",
    ),
    Mutant(
        "a batch is complete when its bytes are there",
        "emulator_hixl/connection.cpp",
        "  if (writes && !receive_all(socket, &reply, sizeof reply)) return false;\n",
        "  if (writes) return *is_well = true;\n",
        f"{HIXL} -k 'does_not_wait or took_back'",
    ),
    Mutant(
        "memory that was taken back is not written",
        "emulator_hixl/server.cpp",
        "    if (memory_->bytes_at(range.address, range.bytes) == nullptr) status = hixl::kFailed;\n",
        "",
        f"{HIXL} -k took_back",
        equivalent="each piece of the range is looked up again before it is received",
    ),
    Mutant(
        "calls are made by the thread, or in the context, of Initialize",
        "emulator_hixl/hixl.cpp",
        '  return refuse(kFailed, "%s: to be called from the thread',
        '  return kOk; return refuse(kFailed, "%s: to be called from the thread',
        f"{HIXL} -k thread_or_context",
    ),
    Mutant(
        "so many regions and no more",
        "emulator_hixl/memory.cpp",
        "  if (entries_.size() == kMostRegions)\n",
        "  if (false)\n",
        f"{HIXL} -k so_many",
    ),
    Mutant(
        "memory is registered as what it is, from end to end",
        "emulator_hixl/memory.cpp",
        "begins_on_device != is_device || ends_on_device != is_device",
        "begins_on_device != is_device",
        f"{HIXL} -k as_what_it_is",
    ),
    Mutant(
        "so many links and no more",
        "emulator_hixl/hixl.cpp",
        "    if (impl_->connections.size() >= emu_hixl::most_links())\n",
        "    if (false)\n",
        f"{HIXL} -k have_their_codes",
    ),
    Mutant(
        "a disconnect fails what is under way",
        "emulator_hixl/connection.cpp",
        "    const bool is_lost = must_stop_ || is_broken_;",
        "    const bool is_lost = is_broken_;",
        f"{HIXL} -k disconnect",
        equivalent="its socket is shut down before it is asked",
    ),
    Mutant(
        "keys stay on their host",
        "emulator/ipc_import.cpp",
        "  const bool same_host = config.host == exporter.ledger->host;",
        "  const bool same_host = true;",
        "test_memory_access.py -k super_pod",
    ),
    Mutant(
        "fabric handles stay in their SuperPod",
        "emulator/ipc_import.cpp",
        "(same_pod && (is_fabric || is_listed))",
        "(is_fabric || is_listed)",
        "test_memory_access.py -k super_pod",
    ),
]
