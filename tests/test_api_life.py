"""An instance from init to finalize, several in one process, and what its calls refuse."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import torch_llm_datadist as datadist
from tests import instances
from tests.links import (
    BLOCK_BYTES,
    BLOCKS,
    TENSORS,
    Peers,
    finalize,
    linked_pair,
    pattern,
    push,
    start,
    wait_unlinked,
)
from tests.peers import PeerError


def test_several_instances_live_in_one_process(peers: Peers) -> None:
    """Lifted: the original has one per process, and no port 0."""
    one, two = peers(2)

    assert one.call(several_in_one_process) == ["LLM_SUCCESS"] * 3

    ports = one.call(ports_of_several)
    two.call(start, 7, 3, {})
    for cluster_id, port in ports.items():
        assert two.call(instances.link, cluster_id, port) == ["LLM_SUCCESS"]
        assert two.call(push, cluster_id, [3], [3]) == "LLM_SUCCESS"
    assert one.call(third_blocks_of_several) == [True] * 3


def several_in_one_process(state: SimpleNamespace) -> list[str]:
    state.several = [SimpleNamespace() for _ in range(3)]
    for i, each in enumerate(state.several):
        start(each, 1 + i, i, {})
    codes = []
    for near, far in ((0, 1), (0, 2), (1, 2)):
        client, server = state.several[near], state.several[far]
        codes += instances.link(client, server.cluster_id, server.datadist.listen_port)
        instances.push_blocks(client, server.cluster_id, [near], [near])
        assert torch.equal(instances.content(server)[:, near], pattern(client.cluster_id)[:, near])
    return codes


def ports_of_several(state: SimpleNamespace) -> dict[int, int]:
    return {each.cluster_id: each.datadist.listen_port for each in state.several}


def third_blocks_of_several(state: SimpleNamespace) -> list[bool]:
    equal = [torch.equal(instances.content(each)[:, 3], pattern(7)[:, 3]) for each in state.several]
    for each in state.several:
        each.datadist.finalize()
    return equal


def test_remote_access_must_be_the_same_at_both_ends(peers: Peers) -> None:
    client, server = peers(2)
    client.call(start, 1, 0, {"enable_remote_cache_accessible": False})
    port = server.call(start, 2, 1, {})

    assert client.call(instances.link, 2, port) == ["LLM_PARAM_INVALID"]


def test_finalize_tells_the_peers_and_init_starts_anew(peers: Peers) -> None:
    """Mended: in the original peers are not told."""
    client, server, _ = linked_pair(peers)

    server.call(finalize)

    assert "the peer left: finalized" in client.call(wait_unlinked, 2, 10)
    port = server.call(start, 2, 1, {})
    assert client.call(instances.link, 2, port) == ["LLM_SUCCESS"]
    assert client.call(push, 2, [0], [0]) == "LLM_SUCCESS"


LEFT_RUNNING = """
import sys
from types import SimpleNamespace
from torch_llm_datadist import emulator
if {is_emulated}: emulator.enable()
from tests import instances, links as t
states = [SimpleNamespace(), SimpleNamespace()]
for i, state in enumerate(states):
    t.start(state, i + 1, i, {{}})
print(instances.link(states[0], 2, states[1].datadist.listen_port))
print(t.push(states[0], 2, [0], [0]), flush=True)
{end}
"""


def test_a_binding_may_be_the_first_that_touches_a_device() -> None:
    code = "import torch_llm_datadist; print(torch_llm_datadist.Binding(0, [0]).layers)"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)

    assert done.stdout == "(0,)\n", done.stderr


@pytest.mark.parametrize("end", ["", "sys.exit(0)", "states[1].datadist.finalize()"])
def test_a_process_that_forgets_to_finalize_exits_cleanly(end: str) -> None:
    from torch_llm_datadist import emulator

    code = LEFT_RUNNING.format(is_emulated=emulator.is_enabled(), end=end)
    root = Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=120,
    )

    assert done.stdout.split() == ["['LLM_SUCCESS']", "LLM_SUCCESS"]
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


def test_calls_before_init_are_runtime_errors() -> None:
    """2.4: everything but init, finalize and cluster_id."""
    instance = datadist.LLMDataDist(datadist.LLMRole.PROMPT, 5)

    assert instance.cluster_id == 5
    instance.finalize()
    for call in (
        lambda: instance.cache_manager,
        lambda: instance.kv_cache_manager,
        lambda: instance.link_clusters([]),
        lambda: instance.unlink_clusters([]),
        lambda: instance.link("x", {}, ""),
        lambda: instance.switch_role(datadist.LLMRole.MIX),
        lambda: instance.check_link_status(1),
    ):
        with pytest.raises(RuntimeError, match="llm datadist is not initialized") as raised:
            call()
        assert type(raised.value) is RuntimeError


@pytest.mark.parametrize(
    ("role", "cluster_id", "error"),
    [
        pytest.param(1, 1, TypeError, id="2.4 role is an int"),
        pytest.param(None, 1, TypeError, id="2.4 role is None (mended)"),
        pytest.param(datadist.LLMRole.MIX, "1", TypeError, id="2.4 cluster_id is a str"),
        pytest.param(datadist.LLMRole.MIX, True, TypeError, id="3.2 row 1 cluster_id is a bool (mended)"),
        pytest.param(datadist.LLMRole.MIX, -1, ValueError, id="2.4 cluster_id is negative"),
        pytest.param(datadist.LLMRole.MIX, 2**64, ValueError, id="2.4 cluster_id is beyond uint64"),
    ],
)
def test_datadist_refuses_bad_arguments(role: Any, cluster_id: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        datadist.LLMDataDist(role, cluster_id)


def test_a_failed_init_can_be_repeated(peers: Peers) -> None:
    one, two = peers(2)
    port = one.call(start, 1, 0, {})

    with pytest.raises(PeerError, match=r"EngineFailedError: init: cannot listen at 127\.0\.0\.1"):
        two.call(start, 2, 1, {"listen_ip_info": f"127.0.0.1:{port}"})

    two.call(start, 2, 1, {})


@pytest.mark.parametrize("cluster_id", [0, 2**63, 2**64 - 1])
def test_any_uint64_is_a_cluster_id_and_a_model_id(peers: Peers, cluster_id: int) -> None:
    client, server = peers(2)
    client.call(start, 1, 0, {})
    port = server.call(start, cluster_id, 1, {})
    server.call(instances.register, 3, TENSORS, BLOCKS, BLOCK_BYTES, datadist.DataType.DT_UINT8, cluster_id)

    assert client.call(instances.link, cluster_id, port) == ["LLM_SUCCESS"]
    client.call(instances.push_blocks, cluster_id, [1], [2], cluster_id)

    assert torch.equal(server.call(instances.content)[:, 2], pattern(1)[:, 1])
