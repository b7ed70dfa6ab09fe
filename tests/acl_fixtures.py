"""Fixtures of the emulated runtime's tests; a plugin of its own, so that pytest loads it before they do."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import pytest

from .acl_calls import Acl


@pytest.fixture(scope="module")
def library() -> Acl:
    return Acl()


@pytest.fixture
def acl(library: Acl) -> Iterator[Acl]:
    """A context of device 0 for this test alone: what fails in it stays in it."""
    context = library.context(0)
    yield library
    library.library.emuSetTaskDelay(ctypes.c_uint64(0))
    library.emuFailTask(None, 0, 0)
    library.code.aclrtDestroyContext(context)
