"""What touches memory that is not there, or not all there, is told so with the documented code."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from . import acl_calls as c
from .acl_calls import Acl
from .acl_harness import Gate, peer

SIZE = 4096


def copy(acl: Acl, address: int, size: int, stream: int) -> None:
    acl.copy(acl.malloc(8 * SIZE), address, size, stream)


def copy_into(acl: Acl, address: int, size: int, stream: int) -> None:
    acl.copy(address, acl.malloc(8 * SIZE), size, stream)


def copy_rows(acl: Acl, address: int, size: int, stream: int) -> None:
    acl.aclrtMemcpy2dAsync(
        acl.malloc(8 * SIZE), size // 4, address, size // 4, size // 4, 4, c.DEVICE_TO_DEVICE, stream
    )


def fill(acl: Acl, address: int, size: int, stream: int) -> None:
    acl.aclrtMemsetAsync(address, size, 0, size, stream)


def to_host(acl: Acl, address: int, size: int, stream: int) -> None:
    acl.copy(acl.malloc_host(8 * SIZE), address, size, stream, c.DEVICE_TO_HOST)


TASKS = [copy, copy_into, copy_rows, fill, to_host]
Task = Callable[[Acl, int, int, int], None]


@pytest.mark.parametrize("task", TASKS)
def test_a_task_that_runs_out_of_its_allocation_fails(acl: Acl, task: Task) -> None:
    stream, memory = acl.stream(), acl.malloc(SIZE)

    task(acl, memory + 64, SIZE, stream)

    assert acl.sync_code(stream) == c.COPY_ENGINE
    assert "runs out of its allocation" in acl.message()


@pytest.mark.parametrize("task", TASKS)
def test_a_task_on_memory_that_was_freed_meanwhile_fails(acl: Acl, task: Task) -> None:
    stream, memory = acl.stream(), acl.malloc(SIZE)
    gate = Gate(acl, stream)
    task(acl, memory, SIZE, stream)

    acl.aclrtFree(memory)
    gate.open()

    assert acl.sync_code(stream) == c.COPY_ENGINE
    assert "was freed before" in acl.message()


def test_a_value_write_to_memory_that_was_freed_meanwhile_fails(acl: Acl) -> None:
    stream, memory = acl.stream(), acl.malloc(SIZE)
    gate = Gate(acl, stream)
    acl.aclrtValueWrite(memory, 1, 0, stream)

    acl.aclrtFree(memory)
    gate.open()

    assert acl.sync_code(stream) == c.COPY_ENGINE
    assert "was freed before" in acl.message()


def test_compute_finds_no_alias_of_freed_memory(acl: Acl) -> None:
    memory = acl.malloc(SIZE)
    assert acl.library.emuHostAlias(acl_pointer(memory)) is not None

    acl.aclrtFree(memory)

    assert acl.library.emuHostAlias(acl_pointer(memory)) is None


def acl_pointer(address: int) -> object:
    import ctypes

    return ctypes.c_void_p(address)


@pytest.mark.parametrize("call", ["aclrtFree", "aclrtFreeHost"])
def test_memory_is_freed_once_by_its_first_byte_and_by_the_right_call(acl: Acl, call: str) -> None:
    make, other = (acl.malloc, acl.malloc_host) if call == "aclrtFree" else (acl.malloc_host, acl.malloc)
    memory, wrong = make(SIZE), other(SIZE)
    free = getattr(acl.code, call)

    assert free(memory + 64) == c.INVALID_PARAM
    assert "lies in the live allocation" in acl.message()
    assert free(wrong) == c.INVALID_PARAM
    assert free(0x1000) == c.INVALID_PARAM
    assert "no allocation is known there" in acl.message()
    assert free(memory) == 0
    assert free(memory) == c.INVALID_PARAM
    assert "was freed before" in acl.message()


def test_with_stacks_the_message_says_who_allocated_and_who_freed() -> None:
    # PyDLL keeps the GIL during calls, as torch does, so there are Python frames.
    program = """
    held = ctypes.PyDLL(str(c.LIBRARY))
    context, stream = acl.context(0), acl.stream()
    def allocates():
        memory = ctypes.c_void_p()
        held.aclrtMallocAlign32(ctypes.byref(memory), ctypes.c_size_t(4096), 0)
        return memory
    def frees(memory):
        held.aclrtFree(memory)
    memory = allocates()
    frees(memory)
    acl.aclrtMemsetAsync(memory.value, 64, 0, 64, stream)
    code = acl.sync_code(stream)
    message = acl.message()
    allocated, freed = message.split("freed at")
    say(code, "in allocates" in allocated, "in frees" in freed, "in frees" in allocated, "libffi" in message)
    """
    with peer(program, TORCH_LLM_DATADIST_EMULATE_STACKS="1") as asked:
        assert asked.hear() == "507013 True True False True"


def test_without_stacks_the_message_is_one_line(acl: Acl) -> None:
    stream, memory = acl.stream(), acl.malloc(SIZE)
    acl.aclrtFree(memory)
    acl.aclrtMemsetAsync(memory, 64, 0, 64, stream)

    assert acl.sync_code(stream) == c.COPY_ENGINE

    assert "\n" not in acl.message()
