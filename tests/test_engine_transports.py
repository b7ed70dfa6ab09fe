"""Links whose peer only an engine reaches: the same transfers, the same deadlines, the same ends."""

from __future__ import annotations

import logging
import time
from importlib import metadata

import msgspec
import pytest
import torch

from tests import instances, test_host_caches
from tests.peers import PeerError
from tests.test_failures import (
    NOTICED_WITHIN_S,
    bind_ticket,
    compute,
    push_some_layers,
    push_until_refused,
    queue_pushes_on_a_stream_that_stands_still,
    read_statuses,
    wait_for_layers,
)
from tests.test_ordering import DST, LAYERS, SRC, prepare
from tests.transfers import Gates, to
from torch_llm_datadist import _native
from torch_llm_datadist import transports as transports_module
from torch_llm_datadist.errors import LLMException, LLMStatusCode
from torch_llm_datadist.identity import own_identity, why_not_link
from torch_llm_datadist.transports import choose, nixl_library

KEEP_ALIVE_MS = 1500
CHUNK = 8192
needs_nixl = pytest.mark.skipif(bool(nixl_library()[1]), reason=nixl_library()[1])
ENGINES = ["loopback", pytest.param("nixl", marks=needs_nixl)]


@pytest.fixture(params=ENGINES)
def engine(request):
    return request.param


def options(engine):
    """Chunks so small that a transfer takes more of them than there are."""
    return {
        "transport": engine,
        "engine_chunk_bytes": CHUNK,
        "engine_chunks": 2,
        "keep_alive_ms": KEEP_ALIVE_MS,
    }


def linked_pair(peers, engine, tensors=4, blocks=24, block_bytes=3000, before=None):
    """``before``: what each process does first."""
    a, b = peers(2)
    if before is not None:
        for peer in (a, b):
            peer.call(before)
    a.call(instances.start, 1, 0, options(engine))
    port = b.call(instances.start, 2, 1, options(engine))
    for cluster_id, peer in ((1, a), (2, b)):
        peer.call(instances.register, cluster_id, tensors, blocks, block_bytes)
    assert a.call(instances.link, 2, port) == ["LLM_SUCCESS"]
    b.call(instances.wait_linked, 1)
    return a, b


def transports(state):
    return [(link.transport, link.passed_over) for link in state.datadist.links()]


def shown(state):
    return [repr(link) for link in state.datadist.links()]


def keep_log(state):
    state.log = []
    handler = logging.Handler()
    handler.emit = lambda record: state.log.append(record.getMessage())
    logger = logging.getLogger("torch_llm_datadist")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)


def logged_choices(state):
    """Whoever was asked for a link says so a moment after it is there."""
    deadline = time.monotonic() + 20
    while not (found := [line for line in state.log if line.startswith("linked to")]):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return found


def test_both_ends_say_what_the_link_goes_over_and_what_was_passed_over(peers, engine):
    a, b = linked_pair(peers, engine, before=keep_log)
    a.call(instances.push_blocks, 2, SRC, DST)

    for peer, other in ((a, 2), (b, 1)):
        [(name, passed_over)] = peer.call(transports)
        assert name == engine
        assert f"mapped: cluster 1: this instance was told to use {engine!r}" in passed_over
        [text] = peer.call(shown)
        assert f"transport={engine!r}" in text
        [line] = peer.call(logged_choices)  # once per link
        assert f"cluster {other} " in line
        assert f" over {engine}" in line
        assert passed_over in line


def offer_nothing(state):
    """To the core; peers are told of caches as ever."""
    instance = _native.load().Instance
    register = instance.register_cache
    instance.register_cache = lambda *given: register(*given[:-1], False)


def why_lost(state, cluster_id):
    deadline = time.monotonic() + 8
    while time.monotonic() < deadline:
        try:
            state.datadist.link_id(cluster_id)
        except LLMException as error:
            return str(error)
        time.sleep(0.01)
    return "the link is still there"


def test_a_peer_that_names_memory_which_it_was_not_offered_loses_the_link(peers, engine):
    a, b = linked_pair(peers, engine, before=offer_nothing)
    before = b.call(instances.content)

    with pytest.raises(PeerError, match="is down"):
        a.call(instances.push_blocks, 2, SRC, DST)

    assert "which it was not offered" in b.call(why_lost, 1)
    assert torch.equal(b.call(instances.content), before)


@pytest.mark.parametrize("push", [True, False], ids=["push", "pull"])
def test_blocks_of_many_chunks_arrive(peers, engine, push):
    a, b = linked_pair(peers, engine)
    src, dst = [*range(24)], [*range(1, 24), 0]
    here, there = (instances.pattern(seed, 4, 24, 3000) for seed in (1, 2))

    a.call(instances.push_blocks if push else instances.pull_blocks, 2, src, dst)

    expected, source = (there, here) if push else (here, there)
    expected[:, dst] = source[:, src]
    assert torch.equal((b if push else a).call(instances.content), expected)


def test_layers_arrive_one_by_one(peers, engine):
    a, b = linked_pair(peers, engine, tensors=2 * LAYERS, block_bytes=256)
    ticket = a.call(prepare)
    b.call(bind_ticket, ticket, 20.0)

    assert a.call(push_some_layers, range(LAYERS), 20.0)[0] == 0
    assert b.call(wait_for_layers)[0] == 0

    expected = instances.pattern(2, 2 * LAYERS, 24, 256)
    expected[:, DST] = instances.pattern(1, 2 * LAYERS, 24, 256)[:, SRC]
    assert torch.equal(b.call(instances.content), expected)


def begin_by_layers(state):
    torch.npu.set_device(state.device)
    state.gates = Gates()
    manager = state.datadist.cache_manager
    state.transfer = manager.transfer_cache_async(state.cache, state.gates, [to(2)], SRC, DST)


def open_gate(state, layer):
    assert state.gates.reached[layer].wait(30)
    state.gates.open[layer].set()


def how_it_ended(state):
    return state.transfer.synchronize(30_000).name


def test_a_layer_leaves_when_it_is_ready_and_no_earlier(peers, engine):
    a, b = linked_pair(peers, engine, tensors=2 * LAYERS, block_bytes=256)
    a.call(begin_by_layers)

    expected, sent = (instances.pattern(seed, 2 * LAYERS, 24, 256) for seed in (2, 1))
    for layer in range(LAYERS):
        assert torch.equal(b.call(instances.content), expected)
        a.call(open_gate, layer)
        both = slice(2 * layer, 2 * layer + 2)
        expected[both, DST] = sent[both][:, SRC]
        deadline = time.monotonic() + 30
        while not torch.equal(b.call(instances.content), expected):
            assert time.monotonic() < deadline, f"layer {layer} has not arrived"
    assert a.call(how_it_ended) == "LLM_SUCCESS"


@pytest.mark.parametrize("how", ["kill", "freeze"])
def test_a_push_to_a_dead_or_frozen_receiver_ends_with_a_code(peers, engine, how):
    a, b = linked_pair(peers, engine)
    a.call(instances.push_blocks, 2, SRC, DST)
    getattr(b, how)()

    code, message = a.call(push_until_refused, 2, NOTICED_WITHIN_S)

    # A frozen one lets a push pass its own deadline before the link counts as lost.
    assert code in ("LLM_NOT_YET_LINK", "LLM_TIMEOUT")
    assert "cluster 2" in message
    assert a.call(compute) == 64


def test_pushes_that_are_queued_release_the_stream_when_the_receiver_freezes(peers, engine):
    a, b = linked_pair(peers, engine)
    a.call(instances.push_blocks, 2, SRC, DST)
    a.call(queue_pushes_on_a_stream_that_stands_still, 20)
    b.freeze()

    codes = a.call(read_statuses)

    assert codes <= {int(LLMStatusCode.LLM_NOT_YET_LINK), int(LLMStatusCode.LLM_TIMEOUT)}
    assert a.call(compute) == 64


@pytest.mark.parametrize("how", ["kill", "freeze"])
def test_a_wait_goes_on_with_a_code_when_the_sender_dies_or_freezes(peers, engine, how):
    a, b = linked_pair(peers, engine, tensors=2 * LAYERS, block_bytes=256)
    b.call(bind_ticket, a.call(prepare), 60.0)
    b.send(wait_for_layers)
    getattr(a, how)()

    status, seconds, computed = b.answer()

    assert status == LLMStatusCode.LLM_NOT_YET_LINK
    assert seconds < NOTICED_WITHIN_S
    assert computed == 64


def test_a_task_whose_forward_stops_half_way_fails_and_the_link_goes_on(peers, engine):
    a, b = linked_pair(peers, engine, tensors=2 * LAYERS, block_bytes=256)
    b.call(bind_ticket, a.call(prepare), 60.0)
    b.send(wait_for_layers)

    assert a.call(push_some_layers, range(2), 0.3)[0] == LLMStatusCode.LLM_TIMEOUT
    assert b.answer()[0] == LLMStatusCode.LLM_TIMEOUT

    a.call(instances.push_blocks, 2, [0], [0])
    assert torch.equal(b.call(instances.content)[:, 0], instances.pattern(1, 2 * LAYERS, 24, 256)[:, 0])


def serve_hosts(state, cluster_id, device, engine):
    state.options = options(engine)
    return test_host_caches.serve(state, cluster_id, device, "RA", state.options)


def test_every_pair_of_placements_moves_the_bytes(peers, engine):
    a, b = peers(2)
    a.call(serve_hosts, 1, 0, engine)
    port = b.call(serve_hosts, 2, 1, engine)
    assert a.call(instances.link, 2, port) == ["LLM_SUCCESS"]
    b.call(instances.wait_linked, 1)

    test_host_caches.move_and_compare(a, b, "RA")


def identity(cluster_id, transports, host="one", super_pod=-1):
    made = own_identity(
        cluster_id, 0, remote_accessible=True, cann="test", transports=transports, super_pod=super_pod
    )
    return msgspec.structs.replace(made, host=host)


def test_the_first_transport_that_both_have_is_taken():
    here = identity(1, {"mapped": "", "nixl": ""})
    there = identity(2, {"mapped": "", "nixl": ""}, host="another")

    assert choose(here, there) == choose(there, here)
    assert choose(here, there).name == "nixl"
    assert "mapped: different hosts" in choose(here, there).passed_over


@pytest.mark.parametrize(
    ("pods", "taken", "why"),
    [
        ((0, 0), "fabric", None),
        ((0, 1), "nixl", "fabric: different SuperPods (0 and 1)"),
        ((-1, -1), "nixl", "fabric: cluster 1: its driver does not tell its SuperPod"),
        ((-1, 0), "nixl", "fabric: cluster 1: its driver does not tell its SuperPod"),
        ((0, -1), "nixl", "fabric: cluster 2: its driver does not tell its SuperPod"),
    ],
)
def test_fabric_is_for_hosts_that_tell_the_same_super_pod(pods, taken, why):
    can = {"mapped": "", "fabric": "", "nixl": ""}
    here, there = identity(1, can, "one", pods[0]), identity(2, can, "another", pods[1])

    choice = choose(here, there)

    assert choice == choose(there, here)
    assert choice.name == taken
    assert why is None or why in choice.passed_over


@pytest.mark.parametrize(
    ("pods", "taken"), [((-1, -1), "fabric"), ((-1, 0), "fabric"), ((0, 0), "fabric"), ((0, 1), "")]
)
def test_fabric_on_request_needs_no_super_pods_but_takes_no_different_ones(pods, taken):
    told = {"mapped": "told otherwise", "fabric": "", "nixl": "told otherwise"}
    can = {"mapped": "", "fabric": "", "nixl": ""}
    here, there = identity(1, told, "one", pods[0]), identity(2, can, "another", pods[1])

    assert choose(here, there).name == choose(there, here).name == taken


def test_a_link_that_no_transport_can_carry_names_each_and_why():
    here = identity(1, {"mapped": "", "nixl": "nixl-cu12 is not installed"})
    there = identity(2, {"mapped": "", "nixl": ""}, host="another")

    refusal = why_not_link(here, there)

    assert refusal is not None
    assert refusal.code == LLMStatusCode.LLM_LINK_FAILED
    assert "mapped: different hosts" in refusal.reason
    assert "nixl: cluster 1: nixl-cu12 is not installed" in refusal.reason
    assert "hixl: cluster 1: it is not known there" in refusal.reason


def hide_nixl(state):
    def version(name):
        raise metadata.PackageNotFoundError(name)

    transports_module.metadata.version = version


def test_without_the_extra_everything_but_nixl_works(peers):
    a, b = peers(2)
    for peer in (a, b):
        peer.call(hide_nixl)
    a.call(instances.start, 1, 0)
    port = b.call(instances.start, 2, 1)
    for cluster_id, peer in ((1, a), (2, b)):
        peer.call(instances.register, cluster_id, 4, 24, 256)
    assert a.call(instances.link, 2, port) == ["LLM_SUCCESS"]
    a.call(instances.push_blocks, 2, [0], [1])

    assert a.call(transports) == [("mapped", "")]
    (other,) = peers(1)
    other.call(hide_nixl)
    with pytest.raises(AssertionError, match=r"nixl-cu12 is not installed \(pip install .*\[nixl\]"):
        other.call(instances.start, 3, 0, {"transport": "nixl"})


def test_init_refuses_a_transport_that_is_not_there_by_name(peers):
    [a] = peers(1)

    with pytest.raises(AssertionError, match="'pigeon', expected one of mapped, fabric, hixl, nixl"):
        a.call(instances.start, 1, 0, {"transport": "pigeon"})
