"""Each kind of transfer: blocks are chosen, bytes are moved, and what arrived is checked against the model.

Whatever fails, fails with a code; then the destination is settled.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from tests.soak import doubts, faults
from tests.soak.links import Link
from tests.soak.member import Life, OverError, RefusedError
from tests.soak.schedule import Kind, Step

if TYPE_CHECKING:
    from tests.soak.soak import Soak

# The library raises these before anything is queued: the destination must be as it was.
NOTHING_SENT = ("LLM_PARAM_INVALID", "LLM_KV_CACHE_NOT_EXIST", "LLM_LINK_BUSY")
TICKET_S = 10.0
# A kernel in front of the copies: the freeze begins before it ends.
STALLS_WITHIN_S = 0.2

Transfer = Callable[["Soak", Step, Life, Life, Link], Awaitable[bool]]


async def push(soak: Soak, step: Step, a: Life, b: Life, link: Link) -> bool:
    """One-sided: the receiver learns of nothing, or by its tag that the bytes are there."""
    src, dst = choose(step, a, b)
    if not dst:
        return False
    b.blocks.begin_write(dst)
    tag = step.number if step.kind == Kind.TAGGED else None
    with a.blocks.reading(src) as stamps:
        asked = a.ask("push", b.cluster_id, src, dst, step.delay_s, tag, b.model_id)
        sending = _begin(link, asked)
        told = None
        if tag is not None:
            told = await outcome(b.ask("wait_arrival", a.cluster_id, tag))
        return await _judge_push(soak, b, dst, stamps, link, sending, told)


def _begin(link: Link, asked: Awaitable[object]) -> asyncio.Task[object]:
    """Of a call that names its peer by the cluster. Until it has returned the two do not link anew: held up
    before it took its link, it would take the new one, with blocks that were somebody else's by then."""
    call = asyncio.create_task(outcome(asked))
    link.began(call)
    return call


async def _judge_push(
    soak: Soak,
    b: Life,
    dst: Sequence[int],
    stamps: list[int],
    link: Link,
    sending: asyncio.Task[object],
    told: object = None,
) -> bool:
    """Of a push that its receiver has no ticket of."""
    sent = await _until_lost(b, link, sending)
    if sent in (None, 0) and told is None:
        await arrived(soak, b, dst, stamps)
        return True
    if isinstance(sent, RefusedError) and sent.code in NOTHING_SENT:
        await untouched(soak, b, dst)
    else:
        await soak.links.end(link, first=b)
        await doubts.settle(soak, b, dst, "may_be_written", link.id_at(b))
    await sending
    return False


async def push_entry(soak: Soak, step: Step, a: Life, b: Life, link: Link) -> bool:
    """A batch entry of the cache that is made of the same memory as the blocks."""
    src, dst = choose(replace(step, blocks=1), a, b)
    if not dst:
        return False
    b.blocks.begin_write(dst)
    with a.blocks.reading(src) as stamps:
        asked = a.ask("push_entry", b.cluster_id, b.batch_id, src[0], dst[0], step.delay_s)
        return await _judge_push(soak, b, dst, stamps, link, _begin(link, asked))


async def pull_entry(soak: Soak, step: Step, a: Life, b: Life, link: Link) -> bool:
    src, dst = choose(replace(step, blocks=1), a, b)
    if not dst:
        return False
    with a.blocks.reading(src) as stamps:
        b.blocks.begin_write(dst)
        pulled = await _begin(link, b.ask("pull_entry", a.cluster_id, a.batch_id, src[0], dst[0]))
    return await judge_pull(soak, b, dst, stamps, link, pulled)


async def asynchronous(soak: Soak, step: Step, a: Life, b: Life, link: Link) -> bool:
    src, dst = choose(step, a, b)
    if not dst:
        return False
    b.blocks.begin_write(dst)
    with a.blocks.reading(src) as stamps:
        asked = a.ask("push_asynchronously", b.cluster_id, src, dst, step.delay_s)
        return await _judge_push(soak, b, dst, stamps, link, _begin(link, asked))


def _with_host(step: Step, a: Life, b: Life) -> tuple[Life, Life]:
    """One end, or both, in host memory."""
    third = int(3 * step.way)
    ends = ((a.host, b), (a, b.host), (a.host, b.host))
    return ends[third]  # type: ignore[return-value]


async def push_host(soak: Soak, step: Step, a: Life, b: Life, link: Link) -> bool:
    return await push(soak, step, *_with_host(step, a, b), link)


async def pull_host(soak: Soak, step: Step, a: Life, b: Life, link: Link) -> bool:
    return await pull(soak, step, *_with_host(step, a, b), link)


async def _until_lost(b: Life, link: Link, sending: asyncio.Task[object]) -> object:
    """How it ended; or, should the receiver's link end first, that it is lost: the receiver does not wait
    for what a frozen sender may say some day."""
    while not (await asyncio.wait({sending}, timeout=0.2))[0]:
        if not await b.ask("has_link", link.id_at(b)):
            return "lost"
    return sending.result()


async def pull(soak: Soak, step: Step, a: Life, b: Life, link: Link) -> bool:
    src, dst = choose(step, a, b)
    if not dst:
        return False
    with a.blocks.reading(src) as stamps:
        b.blocks.begin_write(dst)
        pulled = await _begin(link, b.ask("pull", a.cluster_id, src, dst, None, a.model_id))
    return await judge_pull(soak, b, dst, stamps, link, pulled)


async def publish(soak: Soak, step: Step, a: Life, b: Life, link: Link) -> bool:
    """The holder writes behind a kernel, publishes, and writes the blocks anew once they were taken."""
    src, dst = choose(step, a, b, to_be_written=True)
    if not dst:
        return False
    a.blocks.begin_write(src)
    b.blocks.begin_write(dst)
    stamps = a.blocks.fresh(len(src))
    published = await _begin(link, a.ask("publish", b.cluster_id, src, stamps, step.delay_s))
    if not isinstance(published, tuple):
        if isinstance(published, RefusedError):
            a.blocks.end_write(src, stamps)
        await untouched(soak, b, dst)
        return False
    number, ticket = published
    holder = asyncio.create_task(outcome(_after_taken(soak, a, src, stamps, number)))
    try:
        pulled = await _begin(link, b.ask("pull", a.cluster_id, src, dst, ticket, a.model_id))
        if isinstance(pulled, RefusedError):
            await outcome(b.ask("give_up_ticket", ticket))
        return await judge_pull(soak, b, dst, stamps, link, pulled)
    finally:
        await holder


async def _after_taken(soak: Soak, a: Life, src: Sequence[int], stamps: list[int], number: int) -> None:
    await a.ask("wait_taken", number)
    await soak.look(a, src, stamps, "that were published")
    await doubts.write(soak, a, src)


async def judge_pull(
    soak: Soak, b: Life, dst: Sequence[int], stamps: list[int], link: Link, pulled: object
) -> bool:
    if pulled is None:
        await arrived(soak, b, dst, stamps)
        return True
    if isinstance(pulled, RefusedError) and pulled.code in NOTHING_SENT:
        await untouched(soak, b, dst)
    else:
        await doubts.settle(soak, b, dst, "is_in_doubt", link.id_at(b))
    return False


async def by_layers(soak: Soak, step: Step, a: Life, b: Life, link: Link) -> bool:
    """With a ticket; a late one has a deadline that comes before its layers."""
    src, dst = choose(step, a, b)
    if not dst:
        return False
    is_late = step.kind == Kind.LATE
    timeout_s, delay_s = (0.1, 0.2) if is_late else (TICKET_S, step.delay_s)
    b.blocks.begin_write(dst)
    with a.blocks.reading(src) as stamps:
        is_packed = step.kind == Kind.PACKED
        task = await prepared(soak, a, b, link, src, dst, is_packed)
        if task is None:
            return False
        number, ticket = task
        if is_packed:
            await outcome(b.ask("expect", ticket, dst))
        sending = asyncio.create_task(outcome(a.ask("send_layers", number, delay_s, timeout_s)))
        if soak.sabotage == "early":
            await arrived(soak, b, dst, stamps)
            return True
        waited = await outcome(b.ask("wait_layers", ticket, dst, timeout_s))
        if waited == 0:
            await arrived(soak, b, dst, stamps)
        else:
            if isinstance(waited, RefusedError):
                await outcome(b.ask("give_up_ticket", ticket))
            await doubts.settle(soak, b, dst, "ticket_may_write", ticket)
        await sending
    return waited == 0


async def stalled(soak: Soak, step: Step, a: Life, b: Life, link: Link) -> bool:
    """The sender stops with its copies queued, for longer than its peers wait for a sign of life."""
    stalling = asyncio.create_task(faults.stall(soak, step, a))
    move = push if step.way < 0.5 else by_layers
    good = await move(soak, replace(step, delay_s=STALLS_WITHIN_S), a, b, link)
    await stalling
    return good


async def given_up(soak: Soak, step: Step, a: Life, b: Life, link: Link) -> bool:
    """By the sender, by the receiver, or by the receiver while the sender sends."""
    src, dst = choose(step, a, b)
    if not dst:
        return False
    b.blocks.begin_write(dst)
    with a.blocks.reading(src):
        task = await prepared(soak, a, b, link, src, dst)
        if task is None:
            return False
        number, ticket = task
        if step.way < 1 / 3:
            await outcome(a.ask("give_up_task", number))
            await untouched(soak, b, dst)
            return False
        sending = None
        if step.way > 2 / 3:
            sending = asyncio.create_task(outcome(a.ask("send_layers", number, step.delay_s, TICKET_S)))
        await outcome(b.ask("give_up_ticket", ticket))
        await outcome(sending or a.ask("drop_task", number))
    await doubts.settle(soak, b, dst, "ticket_may_write", ticket)
    return False


async def cancelled(soak: Soak, step: Step, a: Life, b: Life, link: Link) -> bool:
    """By either end while it is under way: when that call returns, the blocks are free at once."""
    src, dst = choose(step, a, b)
    if not dst:
        return False
    b.blocks.begin_write(dst)
    is_by_sender = step.way < 0.5
    with a.blocks.reading(src):
        task = await prepared(soak, a, b, link, src, dst)
        if task is None:
            return False
        number, ticket = task
        sending = None
        if not is_by_sender:
            asked = a.ask("send_layers", number, step.delay_s, TICKET_S)
            sending = asyncio.create_task(outcome(asked))
        by = a.ask("cancel_task", number) if is_by_sender else b.ask("cancel_ticket", ticket, dst)
        said = await outcome(by)
        if said is None and not is_by_sender and not await b.ask("has_ended", ticket):
            text = f"{b}: cancel has returned, and blocks {dst} may still be written by ticket {ticket}"
            soak.findings.add(soak.findings.wrong, text)
        if sending is not None:
            await sending
    if said is not None:  # not in time, or a link that is lost: nobody else gives the ticket up then
        await outcome(b.ask("give_up_ticket", ticket))
    await doubts.settle(soak, b, dst, "ticket_may_write", ticket)
    return False


async def prepared(
    soak: Soak, a: Life, b: Life, link: Link, src: list[int], dst: list[int], is_packed: bool = False
) -> tuple[int, int] | None:
    """Its number at the sender, and the ticket. Without them nothing is ever sent."""
    task = await _begin(link, a.ask("prepare", b.cluster_id, src, dst, is_packed))
    if isinstance(task, tuple):
        return task
    await untouched(soak, b, dst)
    return None


TRANSFERS: dict[Kind, Transfer] = {
    Kind.PUSH: push,
    Kind.TAGGED: push,
    Kind.PULL: pull,
    Kind.PUBLISH: publish,
    Kind.LAYERS: by_layers,
    Kind.LATE: by_layers,
    Kind.PACKED: by_layers,
    Kind.ASYNC: asynchronous,
    Kind.ENTRY_PUSH: push_entry,
    Kind.ENTRY_PULL: pull_entry,
    Kind.HOST_PUSH: push_host,
    Kind.HOST_PULL: pull_host,
    Kind.GIVE_UP: given_up,
    Kind.CANCEL: cancelled,
    Kind.STALL: stalled,
}


def choose(step: Step, a: Life, b: Life, to_be_written: bool = False) -> tuple[list[int], list[int]]:
    """As many source blocks as destination blocks."""
    chance = random.Random(step.seed)
    pick = a.blocks.unused if to_be_written else a.blocks.known
    src, dst = pick(chance, step.blocks), b.blocks.unused(chance, step.blocks)
    count = min(len(src), len(dst))
    return src[:count], dst[:count]


async def arrived(soak: Soak, b: Life, dst: Sequence[int], stamps: list[int]) -> None:
    if soak.sabotage == "flip" and soak.has_reached_sabotage():
        await b.ask("spoil", dst[0])
    await soak.look(b, dst, stamps, "that have arrived")
    b.blocks.end_write(dst, stamps)


async def untouched(soak: Soak, b: Life, dst: Sequence[int]) -> None:
    stamps = b.blocks.stamps(dst)
    await soak.look(b, dst, stamps, "to which nothing was sent")
    b.blocks.end_write(dst, stamps)


async def outcome(call: Awaitable[object]) -> object:
    try:
        return await call
    except (OverError, RefusedError) as error:
        return error
