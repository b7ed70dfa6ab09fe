"""Allocations, copies, what pointers are, and memory that is used when it should not be."""

from __future__ import annotations

from tests.mutations.mutant import Mutant

MEMORY, COPIES, ALLOCATION = "test_memory.py", "test_copy_rules.py", "test_allocation_rules.py"

MUTANTS = [
    # --- copies ---
    Mutant(
        "a pinned source is read when the copy runs",
        "emulator/copy_calls.cpp",
        "  explicit CopyTask(const Copy& copy) : Task(copy.call), copy_(copy) {}",
        "  explicit CopyTask(const Copy& copy) : Task(copy.call), copy_(early(copy)) {}\n"
        "  static Copy early(Copy copy) {\n"
        "    if (copy.height != 1 || locate(copy.src, copy.width) != Where::Pinned) return copy;\n"
        "    auto* bytes = new char[copy.width];\n"
        "    __builtin_memcpy(bytes, reinterpret_cast<void*>(copy.src), copy.width);\n"
        "    copy.src = reinterpret_cast<uintptr_t>(bytes);\n    return copy;\n  }",
        f"{MEMORY} -k read_when",
    ),
    Mutant(
        "a pageable copy waits for its stream",
        "emulator/copy_calls.cpp",
        "    stream->synchronize(std::nullopt);\n",
        "",
        f"{MEMORY} -k pageable_copy",
    ),
    Mutant(
        "a pageable copy is an error in a capture",
        "emulator/copy_calls.cpp",
        "    if (stream->is_capturing()) {\n",
        "    if (false) {\n",
        "test_capture_rules.py -k pageable_copy_on_the_captured",
    ),
    Mutant(
        "a pageable copy is refused while others capture",
        "emulator/copy_calls.cpp",
        "    Runtime::get().captures->check_unsafe(ACL_ERROR_RT_CAPTURE_MODE_BLOCK_ASYNC);\n",
        "",
        "test_capture_rules.py -k unsafe_call",
    ),
    Mutant(
        "a synchronous copy is refused while others capture",
        "emulator/copy_calls.cpp",
        "  Runtime::get().captures->check_unsafe(ACL_ERROR_RT_CAPTURE_MODE_NOT_SUPPORT);\n",
        "",
        "test_capture_rules.py -k unsafe_call",
    ),
    Mutant(
        "a host pointer is no end of a device-to-device copy",
        "emulator/copy_calls.cpp",
        "  if (kind == ACL_MEMCPY_DEVICE_TO_DEVICE && host) {",
        "  if (false) {",
        f"{MEMORY} -k argument_errors",
    ),
    Mutant(
        "no asynchronous copy from host to host",
        "emulator/copy_calls.cpp",
        "  if (is_host(ends.dst) && is_host(ends.src)) {",
        "  if (false) {",
        f"{MEMORY} -k argument_errors",
    ),
    Mutant(
        "a copy fits its destination",
        "emulator/copy_calls.cpp",
        "  if (count > dest_max)\n",
        "  if (count > dest_max + 1)\n",
        f"{MEMORY} -k argument_errors",
    ),
    Mutant(
        "a copy onto itself queues nothing",
        "emulator/copy_calls.cpp",
        "  if (count == 0 || dst == src) return false;",
        "  if (count == 0) return false;",
        f"{MEMORY} -k onto_itself",
    ),
    Mutant(
        "another device of the process is reached with peer access only",
        "emulator/copy_calls.cpp",
        "  check_peers(copy, current().device);\n  check_writable",
        "  check_writable",
        f"{MEMORY} -k needs_peer_access",
    ),
    Mutant(
        "a copy on the device is a task per 4 GiB",
        "emulator/copy_calls.cpp",
        "kDevicePiece = size_t{4} << 30",
        "kDevicePiece = size_t{8} << 30",
        f"{COPIES} -k 4_gib",
    ),
    Mutant(
        "a copy with the host is a task per 64 MiB",
        "emulator/copy_calls.cpp",
        "Runtime::get().config.profile.host_copy_piece() : kDevicePiece",
        "size_t{256} << 20 : kDevicePiece",
        "test_batch_copies.py -k several_tasks",
    ),
    Mutant(
        "2-D copies have a widest",
        "emulator/copy_calls.cpp",
        "  if (width > kMaxWidth || height > kMaxHeight) {",
        "  if (height > kMaxHeight) {",
        f"{COPIES} -k widest",
    ),
    Mutant(
        "2-D copies have a highest",
        "emulator/copy_calls.cpp",
        "kMaxHeight = 5'242'880",
        "kMaxHeight = 5'242'881",
        f"{COPIES} -k widest",
    ),
    Mutant(
        "batches move between host and device only",
        "emulator/batch_copy_calls.cpp",
        "  if (is_host(dst) == is_host(src) || to_device == from_device) {",
        "  if (false) {",
        "test_batch_copies.py -k between_devices",
    ),
    # --- long copies ---
    Mutant(
        "a long copy onto itself is moved in order",
        "emulator/copy.cpp",
        "  if (copy.height == 1 || copy.dst_pitch != copy.src_pitch) return false;\n",
        "  if (copy.height == 1 || copy.dst_pitch != copy.src_pitch) return true;\n",
        "test_bulk_copies.py -k could_share",
    ),
    Mutant(
        "every part of a long copy is moved",
        "emulator/copy.cpp",
        "(bytes + part_bytes - 1) / part_bytes,",
        "bytes / part_bytes,",
        "test_bulk_copies.py",
    ),
    # --- what is live ---
    Mutant(
        "the last bytes of a long copy are moved",
        "emulator/bulk_copy.cpp",
        "  Way::fence();\n  std::memcpy(dst, src, length);\n",
        "  Way::fence();\n",
        "test_bulk_copies.py",
    ),
    Mutant(
        "a task that runs out of its allocation fails",
        "emulator/copy.cpp",
        "  } else if (!out.block->contains(address, length)) {",
        "  } else if (!out.block->contains(address, 1)) {",
        "test_memory_checks.py -k runs_out",
    ),
    Mutant(
        "a task on freed memory fails",
        "emulator/address_space.cpp",
        "  for (size_t i = 0; i < count; ++i) chunks_[first + i] = nullptr;\n",
        "",
        "test_memory_checks.py -k freed",
    ),
    Mutant(
        "a value wait notices that its memory was freed",
        "emulator/value.cpp",
        "    if (block.freed.load()) {",
        "    if (false) {",
        "test_values.py -k freed_under",
    ),
    Mutant(
        "memory is freed by its first byte",
        "emulator/address_space.cpp",
        "  if (it == blocks_.end() || it->second->place != place) return nullptr;",
        "  if (it == blocks_.end()) return nullptr;",
        "test_memory_checks.py -k first_byte",
    ),
    Mutant(
        "the host cannot touch a device address",
        "emulator/address_space.cpp",
        "  void* at = mmap(nullptr, total, PROT_NONE, kReserve",
        "  void* at = mmap(nullptr, total, PROT_READ | PROT_WRITE, kReserve",
        f"{MEMORY} -k cannot_be_touched",
    ),
    Mutant(
        "a freed device address has no alias",
        "emulator/memory_calls.cpp",
        "  return block == nullptr || block->place == Place::Pinned ? nullptr : block->host(address);",
        "  return block == nullptr ? nullptr : block->host(address);",
        f"{MEMORY} -k alias",
    ),
    Mutant(
        "broken memory fails each task that touches it",
        "emulator/copy.cpp",
        "from.error.check(address, length, why); code != ACL_SUCCESS)",
        "from.error.check(address, length, why); code == -1)",
        "test_device_errors.py -k each_task",
    ),
    # --- copies that read their addresses ---
    Mutant(
        "a copy that reads its addresses stays inside its device",
        "emulator/indirect_copy.cpp",
        "      if (lies_on(end, device_)) continue;",
        "      if (end != 0) continue;",
        "test_indirect_copies.py -k no_memory_of_the_device",
    ),
    Mutant(
        "a described copy is of the size that its description has when it runs",
        "emulator/indirect_copy.cpp",
        "                  .width = found.bytes,",
        "                  .width = 64,",
        "test_indirect_copies.py -k description",
    ),
    # --- what pointers are ---
    Mutant(
        "imported memory is device memory",
        "emulator/memory_calls.cpp",
        "    if (block != nullptr && block->place != Place::Pinned) {\n      attributes",
        "    if (block != nullptr && block->place == Place::Device) {\n      attributes",
        f"{ALLOCATION} -k imported",
    ),
    Mutant(
        "pinned memory is host memory",
        "emulator/memory_calls.cpp",
        "    } else if (block != nullptr || Runtime::get().host_memory->contains(address, 1)) {",
        "    } else if (Runtime::get().host_memory->contains(address, 1)) {",
        f"{MEMORY} -k pointer_attributes",
    ),
    Mutant(
        "registered memory is host memory",
        "emulator/memory_calls.cpp",
        "    } else if (block != nullptr || Runtime::get().host_memory->contains(address, 1)) {",
        "    } else if (block != nullptr) {",
        f"{MEMORY} -k pointer_attributes",
    ),
    Mutant(
        "memory tells the size of its pages",
        "emulator/memory_calls.cpp",
        "      attributes->pageSize = static_cast<uint32_t>(block->page);\n",
        "",
        f"{ALLOCATION} -k policy",
    ),
    # --- allocation ---
    Mutant(
        "HUGE_FIRST takes normal pages up to 1 MiB",
        "emulator/memory_calls.cpp",
        "kNormalUpTo = size_t{1} << 20",
        "kNormalUpTo = size_t{2} << 20",
        f"{ALLOCATION} -k policy",
    ),
    Mutant(
        "sizes are rounded up to 32",
        "emulator/memory_calls.cpp",
        "(size + 31) / 32 * 32 + extra",
        "size + extra",
        f"{ALLOCATION} -k rounded",
    ),
    Mutant(
        "a device has as much memory as it has",
        "emulator/device.cpp",
        "  if (now > memory) {\n",
        "  if (now > memory + bytes) {\n",
        f"{MEMORY} -k limit",
    ),
    Mutant(
        "memory that was freed counts no more",
        "emulator/memory_calls.cpp",
        "  Runtime::get().device(block->device).unbook(block->mapped);\n",
        "",
        f"{MEMORY} -k limit",
    ),
    Mutant(
        "registered memory is not registered again",
        "emulator/host_memory.cpp",
        "    if (begin + range.size > base) {",
        "    if (false) {",
        "test_host_memory.py -k twice",
    ),
    Mutant(
        "host memory that is not registered whole is pageable",
        "emulator/host_memory.cpp",
        "address - begin >= range.size || length > range.size - (address - begin))",
        "address - begin >= range.size)",
        "test_host_memory.py -k in_part",
    ),
    # --- physical memory ---
    Mutant(
        "physical memory is mapped whole",
        "emulator/virtual_memory.cpp",
        "  if (size != physical->size) {",
        "  if (size > physical->size) {",
        "test_virtual_memory.py -k mapping_rules",
    ),
    Mutant(
        "one range mixes no devices",
        "emulator/virtual_memory.cpp",
        "    if (&other.device != &physical->device || ",
        "    if (",
        "test_virtual_memory.py -k mapping_rules",
    ),
    Mutant(
        "one range mixes no own and imported memory",
        "emulator/virtual_memory.cpp",
        "|| (other.import == nullptr) != (physical->import == nullptr)) {",
        ") {",
        "test_virtual_memory.py -k mixes_no",
    ),
    Mutant(
        "physical memory is exported once",
        "emulator/virtual_memory_calls.cpp",
        "  if (physical->exported.exchange(true)) {",
        "  if (false) {",
        "test_virtual_memory.py -k exported_once",
    ),
    Mutant(
        "physical memory counts until its importers let go of it",
        "emulator/ipc_import.cpp",
        "  if (kind == ExportKind::Physical) flock(fd, LOCK_SH | LOCK_NB);\n",
        "",
        "test_virtual_memory.py -k importer",
    ),
    Mutant(
        "physical memory that nobody holds any more counts no more",
        "emulator/device.cpp",
        "  unbook_what_nobody_holds();\n  return used.load();",
        "  return used.load();",
        "test_virtual_memory.py -k importer_lets_go",
    ),
    Mutant(
        "access to mapped memory is what was set",
        "emulator/copy.cpp",
        "(touch == Touch::Read ? block.not_read : block.not_written).load()",
        "0",
        "test_memory_access.py -k access_that_was_set",
    ),
    Mutant(
        "fabric handles exist on A3 only",
        "emulator/virtual_memory_calls.cpp",
        "  if (type == ACL_MEM_SHARE_HANDLE_TYPE_FABRIC && !profile.has_fabric()) {",
        "  if (false) {",
        "test_memory_access.py -k fabric",
    ),
    Mutant(
        "a handle is got back from driver 26.0 on",
        "emulator/virtual_memory_calls.cpp",
        "    if (!profile.retains_handles()) {",
        "    if (profile.driver_major < 25) {",
        "test_memory_access.py -k driver_26",
    ),
]
