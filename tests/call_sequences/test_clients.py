"""How known clients use the original (5.1, 5.3, 5.4), as call sequences between real processes."""

from __future__ import annotations

import asyncio
import concurrent.futures
import ipaddress
import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.call_sequences import steps
from tests.call_sequences.steps import filled, key
from tests.call_sequences.test_samples import equal
from tests.peers import Peer
from tests.test_two_sided_links import free_base, rank_table
from torch_llm_datadist import BlocksCacheKey, CacheDesc, DataType, LLMException, LLMStatusCode

Peers = Callable[[int], list[Peer]]
PREFILL, DECODE = 1, 2


# 5.1, the LLMDataDist connector of vllm-ascend's v1 engine.

CONNECTOR = {
    "enable_switch_role": True,
    "enable_cache_manager": True,
    "enable_remote_cache_accessible": True,
    # 4.096 us * 2**20 * 7 / 1000 + 3000, from the retry settings of the network
    "sync_kv_timeout": int(4.096 * 2**20 * 7 / 1000) + 3000,
}

# Per layout the caches: tensors and shape of each, by model_id.
LAYOUTS: dict[str, list[tuple[int, list[int]]]] = {
    "MHA": [(4, [8, 16, 2, 8])],
    "MLA": [(2, [8, 16, 1, 32]), (2, [8, 16, 1, 4])],
    "sparse attention": [(2, [8, 16, 1, 32]), (2, [8, 16, 1, 4]), (2, [8, 16, 1, 8])],
}


ALIGNMENT = 2 * 2**20


def start_connector(state: SimpleNamespace, role: str, cluster_id: int, device: int, options: Any) -> Any:
    """Returns what the side channel tells the other one: the agent's metadata."""
    steps.start(state, role, cluster_id, device, options)
    return {"cluster_id": cluster_id, "server_id": "127.0.0.1", "device_id": device, "super_pod_id": 0}


def register_aligned(
    state: SimpleNamespace, name: str, seed: int, count: int, shape: list[int], key: BlocksCacheKey
) -> None:
    """Tensors inside larger ones, so that their addresses are multiples of 2 MiB; registered by address."""
    state.tensors[name] = []
    for _ in range(count):
        size = torch.Size(shape).numel()
        raw = torch.empty(2 * size + ALIGNMENT, dtype=torch.int8, device=f"npu:{state.device}")
        offset = -raw.data_ptr() % ALIGNMENT
        tensor = raw[offset : offset + 2 * size].view(torch.float16).view(shape)
        state.tensors[name].append(tensor)
    steps.fill(state, name, seed)
    addresses = [tensor.data_ptr() for tensor in state.tensors[name]]
    assert all(address % ALIGNMENT == 0 for address in addresses)
    desc = CacheDesc(count, shape, DataType.DT_FLOAT16)
    state.caches[name] = state.manager.register_blocks_cache(desc, addresses, key)


def table_of(version: str, agents: list[dict[str, Any]]) -> str:
    """From the metadata of both agents; with super pods in version 1.2 (A3), without in 1.0 (A2)."""
    table = json.loads(rank_table([agent["device_id"] for agent in agents]))
    table["version"] = version
    if version == "1.2":
        for device in table["server_list"][0]["device"]:
            device["super_device_id"] = device["device_id"]
        table["super_pod_list"] = [
            {"super_pod_id": "0", "server_list": [{"server_id": agents[0]["server_id"]}]}
        ]
    return json.dumps(table)


def finished(state: SimpleNamespace, blocks: list[int]) -> None:
    """The side channel: the request is done, so its blocks serve the next one."""
    for tensors in state.tensors.values():
        for tensor in tensors:
            tensor[blocks] = 0
    torch.npu.synchronize()


@pytest.mark.parametrize(
    ("layout", "version"), [("MHA", "1.2"), ("MHA", "1.0"), ("MLA", "1.2"), ("sparse attention", "1.2")]
)
def test_vllm_ascend_connector(peers: Peers, layout: str, version: str) -> None:
    prefill, decode = peers(2)
    options = {**CONNECTOR, "link_port": free_base()}
    agents = []
    for process, role, cluster_id, device in (
        (prefill, "PROMPT", PREFILL, 0),
        (decode, "DECODER", DECODE, 1),
    ):
        agents.append(process.call(start_connector, role, cluster_id, device, options))
        for model_id, (count, shape) in enumerate(LAYOUTS[layout]):
            seed = 1000 * cluster_id + 100 * model_id
            process.call(register_aligned, f"{model_id}", seed, count, shape, key(cluster_id, model_id))
    # On first contact both sides link, under a name made from both addresses.
    name = "pd_comm_127.0.0.1_127.0.0.1"
    for process in (prefill, decode):
        process.send(steps.link, name, {PREFILL: 0, DECODE: 1}, table_of(version, agents))
    for process in (prefill, decode):
        process.answer()

    said = decode.call(read_blocks, len(LAYOUTS[layout]), [6, 1, 2], [0, 4, 3])
    prefill.call(finished, [6, 1, 2])

    assert said == "done"
    for model_id, (count, shape) in enumerate(LAYOUTS[layout]):
        wanted = filled(2000 + 100 * model_id, count, shape)
        for tensor, sent in zip(wanted, filled(1000 + 100 * model_id, count, shape), strict=True):
            tensor[[0, 4, 3]] = sent[[6, 1, 2]]
        assert equal(decode.call(steps.content, f"{model_id}"), wanted)
    for process in (prefill, decode):
        process.call(steps.unlink)
    assert decode.call(read_blocks, 1, [0], [0]) == "LLM_NOT_YET_LINK"


def read_blocks(state: SimpleNamespace, count: int, remote_blocks: list[int], local_blocks: list[int]) -> str:
    """In an executor of one thread, one pull per cache, with the connector's error handling."""

    def pull() -> None:
        for model_id in range(count):
            try:
                state.manager.pull_blocks(
                    BlocksCacheKey(PREFILL, model_id),
                    state.caches[f"{model_id}"],
                    remote_blocks,
                    local_blocks,
                )
            except (TypeError, ValueError) as error:
                raise RuntimeError("LLMDataDist: the pull was refused") from error

    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        try:
            executor.submit(pull).result()
        except LLMException as error:
            return error.status_code.name
    return "done"


# 5.3, Omni-infer.

RETRIED = {
    LLMStatusCode.LLM_REPEAT_REQUEST,
    LLMStatusCode.LLM_CLUSTER_NUM_EXCEED_LIMIT,
    LLMStatusCode.LLM_PROCESSING_LINK,
    LLMStatusCode.LLM_DEVICE_OUT_OF_MEMORY,
    LLMStatusCode.LLM_TIMEOUT,
    LLMStatusCode.LLM_WAIT_PROCESS_TIMEOUT,
    LLMStatusCode.LLM_LINK_BUSY,
}
SHAPE = [8, 16]


def cluster_of(address: str, rank: int) -> int:
    return int(ipaddress.ip_address(address)) * 1000 + rank


def test_omni_infer(peers: Peers) -> None:
    prefill, decode = peers(2)
    port = free_base()
    cluster_id = cluster_of("127.0.0.1", 0)
    listen = {"local_comm_res": "", "listen_ip_info": f"127.0.0.1:{port}"}
    prefill.call(steps.start, "PROMPT", cluster_id, 0, listen)
    prefill.call(steps.register, "cache", 10, 4, SHAPE, key(cluster_id))
    decode.call(steps.start, "DECODER", cluster_of("127.0.0.1", 100), 1, {"local_comm_res": ""})
    decode.call(steps.register, "cache", 50, 4, SHAPE)  # without a key
    decode.call(steps.link_clusters, [(cluster_id, port)], 5000)

    assert decode.call(pull_in_a_thread, cluster_id, port, [1, 2], [3, 4]) == ["pulled"]

    # The prefill is started anew at its address; the decode finds out by a pull that fails.
    prefill.kill()
    (again,) = peers(1)
    again.call(steps.start, "PROMPT", cluster_id, 0, listen)
    again.call(steps.register, "cache", 10, 4, SHAPE, key(cluster_id))
    assert decode.call(pull_in_a_thread, cluster_id, port, [1, 2], [3, 4])[-1] == "pulled"

    wanted = filled(50, 4, SHAPE)
    for tensor, sent in zip(wanted, filled(10, 4, SHAPE), strict=True):
        tensor[[3, 4]] = sent[[1, 2]]
    assert equal(decode.call(steps.content, "cache"), wanted)
    # Initialised once more after finalize, under another id.
    decode.call(steps.finalize)
    decode.call(steps.start, "DECODER", cluster_of("127.0.0.1", 101), 1, {"local_comm_res": ""})
    decode.call(steps.register, "cache", 70, 4, SHAPE)
    decode.call(steps.link_clusters, [(cluster_id, port)], 5000)
    assert decode.call(pull_in_a_thread, cluster_id, port, [0], [0]) == ["pulled"]


def pull_in_a_thread(
    state: SimpleNamespace, cluster_id: int, port: int, src: list[int], dst: list[int]
) -> list[str]:
    """Off the event loop; retries on some codes, on others unlinks with force and links again."""
    said: list[str] = []

    async def pull() -> None:
        for _ in range(5):
            try:
                await asyncio.to_thread(
                    state.manager.pull_blocks, BlocksCacheKey(cluster_id), state.caches["cache"], src, dst
                )
            except LLMException as error:
                said.append(error.status_code.name)
                if error.status_code not in RETRIED:
                    state.datadist.unlink_clusters([steps.cluster(cluster_id, None)], 5000, force=True)
                    state.datadist.link_clusters([steps.cluster(cluster_id, port)], 5000)
                continue
            said.append("pulled")
            return

    asyncio.run(pull())
    return said


# 5.4, MindIE's separate deployment.


MORE = 17  # decodes that share a process and a device


def test_mindie_separate_deployment(peers: Peers) -> None:
    """K and V in caches of their own; links of two members each, at most 16 being made at one time."""
    prefill, *decodes, many = peers(4)
    base = free_base()
    options: dict[str, Any] = {
        "enable_cache_manager": True,
        "enable_remote_cache_accessible": True,
        "link_total_time": 60,
        "link_retry_count": 10,
        "link_port": base,
    }
    processes = [prefill, *decodes]
    for i, process in enumerate(processes):
        process.call(steps.start, "MIX", 10 + i, i, options)
        for model_id, name in enumerate(("k", "v")):
            process.call(steps.register, name, 100 * i + 50 * model_id, 3, SHAPE, key(10 + i, model_id))
    for i in (1, 2):
        processes[i].send(steps.link, f"10-{10 + i}", {10: 0, 10 + i: 1}, rank_table([0, i]))
    others = list(range(20, 20 + MORE))
    many.send(link_each, others, options)
    tables = [rank_table([0, 1]), rank_table([0, 2]), *([rank_table([0, 3])] * MORE)]
    most = prefill.call(link_in_a_window, [11, 12, *others], tables)
    for process in (*decodes, many):
        process.answer()
    assert most == 16  # of 19

    for i, decode in enumerate(decodes, start=1):
        for model_id, name in enumerate(("k", "v")):
            decode.call(steps.call, "pull_blocks", key(10, model_id), name, [i, 5], [0, 7])
            wanted = filled(100 * i + 50 * model_id, 3, SHAPE)
            for tensor, sent in zip(wanted, filled(50 * model_id, 3, SHAPE), strict=True):
                tensor[[0, 7]] = sent[[i, 5]]
            assert equal(decode.call(steps.content, name), wanted)
    for process in decodes:
        process.call(steps.unlink)


def link_each(state: SimpleNamespace, cluster_ids: list[int], options: dict[str, Any]) -> None:
    """As many decodes."""
    from tests.nodes import wait_until
    from torch_llm_datadist import RegisterMemStatus

    state.decodes = []
    for cluster_id in cluster_ids:
        decode = SimpleNamespace()
        steps.start(decode, "MIX", cluster_id, 3, options)
        decode.comm_id = decode.datadist.link(f"10-{cluster_id}", {10: 0, cluster_id: 1}, rank_table([0, 3]))
        state.decodes.append(decode)
    for decode in state.decodes:
        ask = decode.datadist.query_register_mem_status
        wait_until(lambda ask=ask, comm_id=decode.comm_id: ask(comm_id) == RegisterMemStatus.OK)


def link_in_a_window(state: SimpleNamespace, cluster_ids: list[int], tables: list[str]) -> int:
    """At most 16 at one time; returns how many were."""
    from tests.nodes import wait_until
    from torch_llm_datadist import RegisterMemStatus

    waiting = dict(zip(cluster_ids, tables, strict=True))
    under_way: list[int] = []
    most = 0

    def go_on() -> bool:
        nonlocal most
        while waiting and len(under_way) < 16:
            cluster_id = next(iter(waiting))
            members = {state.cluster_id: 0, cluster_id: 1}
            under_way.append(state.datadist.link(f"10-{cluster_id}", members, waiting.pop(cluster_id)))
        most = max(most, len(under_way))
        for comm_id in list(under_way):
            status = state.datadist.query_register_mem_status(comm_id)
            assert status != RegisterMemStatus.FAILED
            if status == RegisterMemStatus.OK:
                under_way.remove(comm_id)
        return not waiting and not under_way

    wait_until(go_on)
    return most
