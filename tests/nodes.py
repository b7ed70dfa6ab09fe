"""Instances without a device, and what tests of their links wait for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
import zmq

from tests.recording_core import Node
from torch_llm_datadist.errors import LLMStatusCode
from torch_llm_datadist.handshake import Target

OK = LLMStatusCode.LLM_SUCCESS
DEADLINE_S = 10.0
NO_LINK = 10**9


@pytest.fixture
def node() -> Iterator[Callable[..., Node]]:
    made: list[Node] = []

    def make(*args: object, **kwargs: object) -> Node:
        made.append(Node(*args, **kwargs))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for each in made:
        each.links.close(0.3)


def target_of(server: Node) -> Target:
    return Target(server.identity.cluster_id, "127.0.0.1", server.port)


def link(client: Node, server: Node, timeout_s: float = DEADLINE_S) -> LLMStatusCode:
    return client.links.link([target_of(server)], timeout_s)[0]


def wait_until(condition: Callable[[], bool]) -> None:
    """Waits for something that another thread does and that has no event to wait for."""
    pause = threading.Event()
    for _ in range(int(DEADLINE_S / 0.01)):
        if condition():
            return
        pause.wait(0.01)
    pytest.fail("it did not become true in time")


def is_linked(at: Node, to: Node) -> bool:
    return any(info.cluster_id == to.identity.cluster_id for info in at.links.table.infos())


def unused_port() -> int:
    with zmq.Context() as context, context.socket(zmq.ROUTER) as socket:
        return socket.bind_to_random_port("tcp://127.0.0.1")


class stopped:
    """Keeps a node's control thread busy, as if its process were frozen."""

    def __init__(self, frozen: Node) -> None:
        self._thawed = threading.Event()
        is_frozen = threading.Event()

        def freeze() -> None:
            is_frozen.set()
            self._thawed.wait(DEADLINE_S)

        frozen.links._loop.post(freeze)
        assert is_frozen.wait(DEADLINE_S)

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self._thawed.set()
