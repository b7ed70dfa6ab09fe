"""Task and Binding: how a request's transfers meet a model's forward."""

from __future__ import annotations

import importlib
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from torch_llm_datadist import _native, checks
from torch_llm_datadist.errors import class_for_code
from torch_llm_datadist.messages import refusal

if TYPE_CHECKING:
    from torch_llm_datadist.blocks_in_doubt import BlocksInDoubt


class TransferState(NamedTuple):
    """``has_ended`` with code 0 means that every byte has left (task) or arrived (ticket).

    ``has_ended`` with another code means that it failed and nothing more of it is read or written: its blocks
    may be used again. A code while ``has_ended`` is False means that it failed and its blocks are in doubt:
    the sender has neither confirmed that what it had queued is done, nor is its process known to be gone.
    ``CacheManager.blocks_in_doubt`` lists such blocks. The host learns of an end a few milliseconds after the
    streams do.
    """

    has_ended: bool
    code: int
    detail: str


class Task:
    """The sender's handle of a push whose layers a forward releases one by one.

    Made by ``CacheManager.prepare_push``. Hand ``ticket`` to the receiver's application with the request; it
    is an integer below 2**53. Dropping a task that was never bound gives it up, and the receiver's waits end
    with a code.

    >>> task = prefill.cache_manager.prepare_push(BlocksCacheKey(2), source, [0, 1], [5, 6])
    >>> isinstance(task.ticket, int)  # goes to the receiver with the request
    True
    >>> task.state().has_ended
    False
    """

    def __init__(
        self,
        number: int,
        writes: BlocksInDoubt | None = None,
        dropped: Callable[[int, BlocksInDoubt | None], None] | None = None,
    ) -> None:
        """For ``CacheManager``.

        Args:
            writes: what is in doubt when it fails.
            dropped: takes the number, and frees it, when nobody refers to this object any more.
        """
        native = _native.load()
        self.number = number
        self.writes = writes
        self.ticket: int = native.task_ticket(number)
        if dropped is None:
            weakref.finalize(self, native.task_free, number).atexit = False
        else:
            weakref.finalize(self, dropped, number, writes).atexit = False

    def state(self) -> TransferState:
        """Polls; never blocks."""
        return TransferState(*_native.load().task_state(self.number))

    @property
    def is_expected(self) -> bool:
        """The receiver has said where a push that may go packed goes (``CacheManager.expect``)."""
        return bool(_native.load().task_way(self.number)[0])

    @property
    def is_packed(self) -> bool:
        """It goes packed: ``packed=True`` said so, or it was expected when it was bound."""
        return bool(_native.load().task_way(self.number)[1])

    def __repr__(self) -> str:
        return f"Task({self.number}, ticket={self.ticket})"


def unsettled(tasks: Iterable[Task]) -> list[BlocksInDoubt]:
    """What those that have not ended may still write."""
    found = [(task.writes, task.state()) for task in tasks]
    return [replace(writes, why=state.detail) for writes, state in found if writes and not state.has_ended]


class Publication:
    """The holder's handle of layers that a peer may pull. Made by ``CacheManager.publish``.

    Hand ``ticket`` to the peer's application; it is an integer below 2**53. Dropping the handle leaves the
    publication as it is.

    >>> publication = prefill.cache_manager.publish(source.tensors[0], source, None, 2)
    >>> key = BlocksCacheKey(1)
    >>> decode.cache_manager.pull_blocks(key, target, [0], [5], ticket=publication.ticket)
    >>> publication.wait_taken(timeout_s=10)
    >>> publication.state().code
    0
    """

    def __init__(self, number: int, is_read: BlocksInDoubt | None = None) -> None:
        native = _native.load()
        self.number = number
        self.is_read = is_read  # what the peer may still read when it is given up
        self.ticket: int = native.task_ticket(number)
        weakref.finalize(self, native.task_free, number).atexit = False

    def state(self) -> TransferState:
        """Polls; never blocks. ``has_ended``: nothing reads the blocks any more. Code 0: they were pulled."""
        return TransferState(*_native.load().task_state(self.number))

    def wait_taken(self, timeout_s: float) -> None:
        """Blocks until the peer has pulled.

        Raises:
            LLMException: ``LLM_TIMEOUT`` when it has not yet, and may still; wait again, or ``discard`` it.
                Any other code when it never will; the blocks are free then.
        """
        timeout_ms = _milliseconds("wait_taken", timeout_s)
        found = TransferState(*_native.load().task_wait_for(self.number, timeout_ms))
        if not found.has_ended:
            why = f", and the peer may still read: {found.detail}" if found.code else ""
            raise refusal("ticket_not_pulled", value=self.ticket, timeout=timeout_s, why=why)
        if found.code:
            raise class_for_code(found.code)(f"wait_taken: ticket {self.ticket}: {found.detail}")

    def __repr__(self) -> str:
        return f"Publication({self.number}, ticket={self.ticket})"


class Binding:
    """Joins tasks (what a forward sends) and tickets (what it waits for) to the forward's layer ops.

    ``id`` stays the same for the life of the forward, so a graph may hold it as a constant; ``bind`` before
    each forward, or replay of one, says which transfers it serves.

    The layer ops may be captured in a graph (``torch.npu.NPUGraph``), which then serves whatever is bound
    before each replay: other blocks, other peers, a peer that was linked anew. What was bound before the
    capture, and met no op yet, serves the first replay. Once an op of a binding was captured, all its
    forwards, eager ones included, go through the same gates: each calls the captured ops once, and the next
    ``bind`` waits until it has. So graphs whose forwards have other ops take another binding. A replay that
    nobody bound is let through, and its status is ``LLM_PARAM_INVALID``; so is one after ``close``.

    Args:
        device: index of the NPU that the caches are on.
        layers: the layer indices that the forward's ops name.
        timeout_s: default deadline of what is bound, from ``bind`` to the last byte.

    >>> sends = llm_datadist.Binding(device=0, layers=range(LAYERS))  # once per model
    >>> waits = llm_datadist.Binding(device=1, layers=range(LAYERS))
    >>> task = prefill.cache_manager.prepare_push(BlocksCacheKey(2), source, [0, 1], [5, 6])
    >>> sends.bind([task], timeout_s=30)  # before the forward that writes the layers
    >>> waits.bind([task.ticket], timeout_s=30)  # before the forward that reads them
    >>> sent, arrived = (torch.zeros(1, dtype=torch.int32, device=f"npu:{i}") for i in range(2))
    >>> for layer in range(LAYERS):
    ...     keys, values = source.tensors[2 * layer : 2 * layer + 2]
    ...     _ = values.fill_(layer)
    ...     llm_datadist.ops.push_layer(sent, values, layer, sends.id)
    >>> llm_datadist.ops.finish(sent, values, sends.id)
    >>> for layer in range(LAYERS):
    ...     query = torch.zeros(4, device="npu:1")
    ...     llm_datadist.ops.wait_layer(arrived, query, layer, waits.id)
    >>> int(sent), int(arrived), target.tensors[3][5].float().mean().item()
    (0, 0, 1.0)
    """

    def __init__(self, device: int, layers: Iterable[int], timeout_s: float = 60.0) -> None:
        if isinstance(device, bool) or not isinstance(device, int):
            raise refusal(
                "bad_type", name="Binding: device", value=repr(device), expected="the index of an NPU (int)"
            )
        if isinstance(layers, int):
            raise refusal("layers_is_a_number", value=layers)
        self.layers = tuple(checks.layers("Binding: layers", layers))
        timeout_ms = _milliseconds("Binding", timeout_s)
        native = _native.load()
        native.require_not_forked("Binding")
        npu = importlib.import_module("torch").npu
        npu.init()  # a forward may be the first to touch a device
        if not 0 <= device < npu.device_count():
            seen = f"the index of one of the {npu.device_count()} devices that this process sees"
            raise refusal("bad_value", name="Binding: device", value=device, expected=seen)
        self.id: int = native.binding_create(device, self.layers, timeout_ms)
        self._close = weakref.finalize(self, native.binding_destroy, self.id)
        self._close.atexit = False

    def bind(
        self,
        transfers: Sequence[Task | int] = (),
        *,
        open_layers: Iterable[int] = (),
        timeout_s: float | None = None,
    ) -> None:
        """Connects the next forward to these transfers, in place of the last ones.

        Call it outside graphs, before each forward; ``bind(())`` is a forward without a transfer, all gates
        open. Blocks while a ticket that was just issued has not been confirmed by its sender's watchdog and,
        once ops were captured, while the last forward has not passed them. What that one did not push, and an
        eager forward cannot push any more, is not sent.

        Args:
            transfers: tasks to send, and tickets (ints) to wait for; several of either.
            open_layers: layers that have no gate in this forward: a wait for one passes at once, although its
                bytes may be missing, and a task sends one at once.
            timeout_s: deadline of these transfers; default is the binding's.

        Raises:
            LLMException: LLM_PARAM_INVALID for a ticket that is used up or does not carry a layer which the
                forward waits for, and for a task that was bound before; LLM_LINK_BUSY when the link has no
                stream left for a task; LLM_TIMEOUT when a ticket was not confirmed, or when the last replay
                has not come: ``unbind`` then. Nothing is bound, the tasks stay usable.
        """
        if not isinstance(transfers, Iterable) or isinstance(transfers, (str, bytes)):
            raise refusal(
                "bad_type",
                name="bind: transfers",
                value="a single one" if isinstance(transfers, (Task, int)) else checks.shown(transfers),
                expected="a list of tasks or tickets",
            )
        transfers = list(transfers)
        tasks = [t.number for t in transfers if isinstance(t, Task)]
        tickets = [_ticket_number("bind", t) for t in transfers if not isinstance(t, Task)]
        open_now = checks.layers("bind: open_layers", open_layers)
        timeout_ms = 0 if timeout_s is None else _milliseconds("bind", timeout_s)
        _native.load().binding_bind(self.id, tasks, tickets, open_now, timeout_ms)

    def unbind(self) -> None:
        """Undoes the last ``bind``, whose forward does not come: its layers are not sent, its tickets end.

        Only when no forward and no replay that uses the binding is queued or running. Idempotent.
        """
        _native.load().binding_unbind(self.id)

    def close(self) -> None:
        """Frees the binding; streams that still hold its gates keep them until they have passed.
        Idempotent."""
        self._close()

    def __repr__(self) -> str:
        return f"Binding({self.id}, layers={self.layers})"


def ticket_state(ticket: int) -> TransferState:
    """How a ticket of this process stands; polls, never blocks.

    >>> task = prefill.cache_manager.prepare_push(BlocksCacheKey(2), source, [0], [5])
    >>> llm_datadist.ticket_state(task.ticket).has_ended
    False
    """
    return TransferState(*_native.load().ticket_state(_ticket_number("ticket_state", ticket)))


def discard(transfer: Task | Publication | int) -> None:
    """Gives a transfer up that is not wanted any more, at either end, so that its slot can be used again.

    Nothing more of it is sent or read, and the other end's waits end with a code. Returns at once: the blocks
    are free when ``has_ended`` says so. Discarding twice is no error. ``CacheManager.cancel`` also ends what
    is bound, and waits until the blocks are free.

    >>> task = prefill.cache_manager.prepare_push(BlocksCacheKey(2), source, [0], [5])
    >>> llm_datadist.discard(task.ticket)  # at the receiver, which will not wait after all

    Args:
        transfer: at the sender, a task that was not bound yet; at the holder, a publication; at the other
            end of either, the ticket, which nobody waits for or pulls with yet.

    Raises:
        LLMException: ``LLM_PARAM_INVALID`` for one that is bound to a forward or being pulled with, which
            ends when its bytes have moved or at its deadline, and for one that has ended otherwise.
    """
    if isinstance(transfer, (Task, Publication)):
        _native.load().task_discard(transfer.number)
    else:
        _native.load().ticket_discard(_ticket_number("discard", transfer))


def _ticket_number(asked: str, ticket: object) -> int:
    if not checks.is_integer(ticket):
        raise refusal("no_transfer", value=checks.shown(ticket), type=type(ticket).__name__)
    return checks.ticket(f"{asked}: ticket", ticket)


def _milliseconds(asked: str, timeout_s: object) -> int:
    if not isinstance(timeout_s, (int, float)) or isinstance(timeout_s, bool):
        raise refusal("not_a_number_of_seconds", name=f"{asked}: timeout_s", value=checks.shown(timeout_s))
    if not 0 < timeout_s <= 10**6:
        raise refusal("bad_binding_timeout", value=timeout_s)
    return max(1, round(timeout_s * 1000))
