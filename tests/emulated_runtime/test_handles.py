"""Handles are recognised by kind, generation and place: another kind's or a freed one's are refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from . import acl_calls as c
from .acl_calls import Acl

Make = Callable[[Acl], int]
Use = Callable[[Acl, int], int]

PLACE = 0xFFFFF00
KINDS: dict[str, tuple[Make, Use]] = {
    "stream": (lambda acl: acl.stream(), lambda acl, h: acl.sync_code(h)),
    "event": (lambda acl: acl.event(), lambda acl, h: acl.code.aclrtSynchronizeEvent(h)),
    "context": (
        lambda acl: acl.out("aclrtGetCurrentContext"),
        lambda acl, h: acl.code.aclrtSetCurrentContext(h),
    ),
    "notify": (
        lambda acl: acl.out("aclrtCreateNotify", 0),
        lambda acl, h: acl.code.aclrtRecordNotify(h, None),
    ),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("change", [1 << 52, -(1 << 52), 1 << 28, 1, 0x80, 0xFFFFF << 8])
def test_handle_that_differs_in_any_part_is_107017(acl: Acl, kind: str, change: int) -> None:
    make, use = KINDS[kind]
    handle = make(acl)

    assert use(acl, handle) == 0
    assert use(acl, handle + change) == c.BAD_HANDLE


@pytest.mark.parametrize("used_as", KINDS)
@pytest.mark.parametrize("kind", KINDS)
def test_handle_of_one_kind_is_refused_as_another(acl: Acl, kind: str, used_as: str) -> None:
    if kind != used_as:
        assert KINDS[used_as][1](acl, KINDS[kind][0](acl)) == c.BAD_HANDLE


@pytest.mark.parametrize(
    ("make", "destroy", "use"),
    [
        (KINDS["event"][0], "aclrtDestroyEvent", KINDS["event"][1]),
        (KINDS["stream"][0], "aclrtDestroyStream", KINDS["stream"][1]),
    ],
    ids=["event", "stream"],
)
def test_freed_handle_is_refused_also_when_its_place_is_used_again(
    acl: Acl, make: Make, destroy: str, use: Use
) -> None:
    stale = [make(acl) for _ in range(300)]  # more than are always kept free
    for handle in stale:
        getattr(acl, destroy)(handle)
    at_place = {handle & PLACE: handle for handle in stale}

    for _ in range(1_000_000):  # places are used again oldest first
        live = make(acl)
        if live & PLACE in at_place:
            break
        getattr(acl, destroy)(live)

    assert use(acl, live) == 0
    assert use(acl, at_place[live & PLACE]) == c.BAD_HANDLE
    getattr(acl, destroy)(live)


def test_null_is_no_event(acl: Acl) -> None:
    assert acl.code.aclrtSynchronizeEvent(None) == c.BAD_HANDLE
    assert acl.code.aclrtDestroyEvent(None) == c.BAD_HANDLE
