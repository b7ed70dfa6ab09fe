"""Copies that read their addresses from device memory when they run: within one device, 4 GiB at most."""

from __future__ import annotations

import ctypes

import pytest

from . import acl_calls as c
from .acl_calls import Acl

INNER = 6
KINDS = [kind for kind in range(8) if kind != INNER]
GIB = 1 << 30
DMA_ERROR = 507013


@pytest.fixture
def description(acl: Acl) -> int:
    acl.context(0)
    return acl.malloc(acl.last_out("aclrtGetMemcpyDescSize", INNER, kind=ctypes.c_size_t))


def test_described_copy_moves_what_its_description_says_when_it_runs(acl: Acl, description: int) -> None:
    stream, word = acl.stream(), acl.malloc(64)
    first, second, target = acl.malloc(64, fill=1), acl.malloc(64, fill=2), acl.malloc(64)
    acl.aclrtSetMemcpyDesc(description, INNER, first, target, 64, None)
    acl.aclrtValueWait(word, 1, c.EQ, stream)
    acl.aclrtMemcpyAsyncWithDesc(description, INNER, stream)

    acl.aclrtSetMemcpyDesc(description, INNER, second, target, 32, None)
    acl.write_word(word, 1)
    acl.synchronize(stream)

    assert acl.read(target, 64) == b"\2" * 32 + b"\0" * 32


def test_copy_with_offsets_reads_both_addresses_when_it_runs(acl: Acl) -> None:
    stream, word, table = acl.stream(), acl.malloc(64), acl.malloc(64)
    source, target = acl.malloc(64), acl.malloc(64)
    acl.write(source, bytes(range(64)))
    acl.aclrtValueWait(word, 1, c.EQ, stream)
    acl.aclrtMemcpyAsyncWithOffset(table, 16, 8, table + 8, 16, 32, INNER, stream)

    acl.write_word(table, target)
    acl.write_word(table + 8, source)
    acl.write_word(word, 1)
    acl.synchronize(stream)

    assert acl.read(target, 64) == bytes(8) + bytes(range(32, 48)) + bytes(40)


def test_described_copy_is_captured_and_follows_its_description(acl: Acl, description: int) -> None:
    stream = acl.stream()
    first, second, target = acl.malloc(64, fill=1), acl.malloc(64, fill=2), acl.malloc(64)
    acl.aclrtSetMemcpyDesc(description, INNER, first, target, 64, None)
    acl.aclmdlRICaptureBegin(stream, 0)
    acl.aclrtMemcpyAsyncWithDesc(description, INNER, stream)
    graph = acl.last_out("aclmdlRICaptureEnd", stream, kind=ctypes.c_void_p)

    acl.aclrtSetMemcpyDesc(description, INNER, second, target, 64, None)
    acl.aclmdlRIExecuteAsync(graph, stream)
    acl.synchronize(stream)

    assert acl.read(target, 64) == b"\2" * 64
    acl.aclmdlRIDestroy(graph)


@pytest.mark.parametrize("kind", KINDS)
def test_only_copies_inside_a_device_read_their_addresses(acl: Acl, description: int, kind: int) -> None:
    near, stream = acl.malloc(64), acl.stream()

    assert acl.code.aclrtGetMemcpyDescSize(kind, ctypes.byref(ctypes.c_size_t())) == c.INVALID_PARAM
    assert acl.code.aclrtSetMemcpyDesc(description, kind, near, near + 32, 8, None) == c.INVALID_PARAM
    assert acl.code.aclrtMemcpyAsyncWithDesc(description, kind, stream) == c.INVALID_PARAM
    assert acl.code.aclrtMemcpyAsyncWithOffset(near, 8, 0, near + 8, 8, 0, kind, stream) == c.INVALID_PARAM


def test_arguments_of_indirect_copies_are_checked(acl: Acl, description: int) -> None:
    near, stream = acl.malloc(64), acl.stream()
    host = acl.malloc_host(64)
    describe, with_offset = acl.code.aclrtSetMemcpyDesc, acl.code.aclrtMemcpyAsyncWithOffset

    assert describe(description, INNER, near, near + 32, 0, None) == c.INVALID_PARAM
    assert describe(description, INNER, near, near + 32, 4 * GIB + 1, None) == c.INVALID_PARAM
    assert describe(description, INNER, None, near, 8, None) == c.INVALID_PARAM
    assert describe(description, INNER, near, None, 8, None) == c.INVALID_PARAM
    assert describe(description, INNER, near, near + 32, 8, near) == c.INVALID_PARAM
    assert describe(description + 4, INNER, near, near + 32, 8, None) == 107008
    assert describe(host, INNER, near, near + 32, 8, None) == c.INVALID_PARAM
    assert acl.code.aclrtMemcpyAsyncWithDesc(host, INNER, stream) == c.INVALID_PARAM
    assert with_offset(near, 8, 0, near + 8, 9, 0, INNER, stream) == c.INVALID_PARAM
    assert with_offset(near + 4, 8, 0, near + 8, 8, 0, INNER, stream) == 107008
    assert with_offset(near, 8, 0, host, 8, 0, INNER, stream) == c.INVALID_PARAM


def test_address_that_is_no_memory_of_the_device_is_a_task_error(acl: Acl, description: int) -> None:
    stream, near, host = acl.stream(), acl.malloc(64), acl.malloc_host(64)

    acl.aclrtSetMemcpyDesc(description, INNER, host, near, 8, None)
    acl.aclrtMemcpyAsyncWithDesc(description, INNER, stream)
    assert acl.sync_code(stream) == DMA_ERROR
    assert "is not memory of device 0" in acl.message()

    acl.aclrtMemcpyAsyncWithDesc(near, INNER, stream)
    assert acl.sync_code(stream) == DMA_ERROR
    assert "holds no description" in acl.message()
