"""The report of what was not given back."""

from __future__ import annotations

import re

import pytest

from .acl_harness import Peer

LEAKS = {"TORCH_LLM_DATADIST_EMULATE_LEAKS": "1"}


def said_at_exit(program: str, **environment: str) -> str:
    return Peer(program, **{**LEAKS, **environment}).end()


def test_a_clean_program_says_nothing() -> None:
    said = said_at_exit("""
        context = acl.context(0)
        memory, host, stream, event = acl.malloc(4096), acl.malloc_host(4096), acl.stream(), acl.event()
        acl.aclrtFree(memory)
        acl.aclrtFreeHost(host)
        acl.aclrtDestroyEvent(event)
        acl.aclrtDestroyStream(stream)
        acl.aclrtDestroyContext(context)
    """)

    assert said == ""


def test_nothing_is_said_unless_it_is_asked_for() -> None:
    assert (
        said_at_exit("context = acl.context(0); acl.malloc(64)", TORCH_LLM_DATADIST_EMULATE_LEAKS="0") == ""
    )


LEFT = {
    "acl.malloc(4096)": "device memory: 1, 4096 bytes",
    "acl.malloc(64), acl.malloc(64)": "device memory: 2, 128 bytes",
    "acl.malloc_host(8192)": "pinned host memory: 1, 8192 bytes",
    "acl.stream()": "streams: 1",
    "acl.event()": "events: 1",
    "acl.hardware_event()": "events: 1",
    "acl.out('aclrtCreateNotify', 0)": "notifies: 1",
    "acl.export(acl.malloc(2 << 20), 2 << 20)": "exported IPC keys: 1",
    "None": "contexts: 1",
}
IN_EACH = {"contexts: 1"}  # the one that the rest is made in; its default stream is no leak of its own


@pytest.mark.parametrize("ending", ["exit", "finalize"])
def test_what_is_left_is_counted_by_sort(ending: str) -> None:
    program = "context = acl.context(0)\n" + "\n".join(list(LEFT)[1:])
    if ending == "finalize":
        program += "\nacl.aclFinalize()\n"

    said = said_at_exit(program)

    assert "did not give back" in said
    for line in [*list(LEFT.values())[2:4], "events: 2", *list(LEFT.values())[6:]]:
        assert f"  {line}" in said, said
    assert "device memory: 3, 2097280 bytes" in said
    assert said.count("did not give back") == 1


@pytest.mark.parametrize("left", list(LEFT))
def test_each_sort_alone(left: str) -> None:
    said = said_at_exit(f"context = acl.context(0)\n{left}")

    sorts = {line.strip() for line in said.splitlines() if re.match("  [a-z]", line)}
    held = {"device memory: 1, 2097152 bytes"} if "export" in left else set()
    assert sorts == {LEFT[left], *held, *IN_EACH}


def test_with_stacks_each_place_is_told() -> None:
    said = said_at_exit(
        """
        held = ctypes.PyDLL(str(c.LIBRARY))
        context = acl.context(0)
        def first(): held.aclrtCreateEvent(ctypes.byref(ctypes.c_void_p()))
        def second(): held.aclrtCreateEvent(ctypes.byref(ctypes.c_void_p()))
        first(), second(), second()
        """,
        TORCH_LLM_DATADIST_EMULATE_STACKS="1",
    )

    assert "events: 3" in said
    assert "in first" in said
    assert said.count("in second") == 1  # the same place, told once
