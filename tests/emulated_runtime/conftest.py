"""The emulated runtime by its C interface, without torch. Run apart from the other tests, in processes of its
own: what these tests do to contexts and devices on purpose would be done to torch_npu, too.
"""

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
