"""The shipped samples of the original as call sequences between real processes (5.5), oddities included."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch

from tests.call_sequences import steps
from tests.call_sequences.steps import POOL, filled, key
from tests.peers import Peer
from tests.test_two_sided_links import free_base, rank_table
from torch_llm_datadist import (
    BlocksCacheKey,
    Cache,
    CacheDesc,
    CacheKey,
    CacheKeyByIdAndIndex,
    DataType,
    LayerSynchronizer,
    LLMRole,
    Placement,
    TransferWithCacheKeyConfig,
)

Peers = Callable[[int], list[Peer]]
P, D = 1, 2
ONE_SIDED = {"local_comm_res": "", "listen_ip_info": "127.0.0.1:0"}


def equal(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def two_sided(peers: Peers, options: dict[str, Any]) -> tuple[Peer, Peer]:
    prompt, decoder = peers(2)
    options = {"enable_cache_manager": True, "link_port": free_base(), **options}
    prompt.call(steps.start, "PROMPT", P, 0, options)
    decoder.call(steps.start, "DECODER", D, 1, options)
    return prompt, decoder


def link(*members: Peer) -> None:
    for member in members:
        member.send(steps.link, "link", {P: 0, D: 1}, rank_table([0, 1]))
    for member in members:
        member.answer()


def end(*processes: Peer) -> None:
    for process in processes:
        process.call(steps.finalize)


def test_pull_cache_sample(peers: Peers) -> None:
    prompt, decoder = two_sided(peers, {"mem_pool_cfg": POOL})
    shape = [2, 256]
    link(prompt, decoder)  # and then allocate: the pool was registered at init
    keys = [CacheKey(P, 0), CacheKey(P, 1)]
    prompt.call(steps.allocate, "cache", 10, 4, shape, keys)

    decoder.call(steps.allocate, "cache", 50, 4, shape)
    decoder.call(steps.call, "pull_cache", keys[0], "cache", 0)
    decoder.call(steps.call, "pull_cache", keys[1], "cache", 1)

    assert equal(decoder.call(steps.content, "cache"), filled(10, 4, shape))
    for process in (prompt, decoder):
        process.call(steps.unlink)
    for used in keys:
        prompt.call(steps.call, "remove_cache_key", used)  # the pulls took them away already
    prompt.call(steps.call, "deallocate_cache", "cache")
    end(prompt, decoder)


def test_pull_blocks_sample(peers: Peers) -> None:
    prompt, decoder = two_sided(peers, {})
    shape = [4, 16]
    prompt.call(steps.register, "cache", 10, 1, shape, key(P))
    decoder.call(steps.register, "cache", 50, 1, shape)
    link(prompt, decoder)

    decoder.call(steps.call, "pull_blocks", key(P), "cache", {"src_blocks": [0, 1], "dst_blocks": [0, 1]})

    assert torch.equal(decoder.call(steps.content, "cache")[0][:2], filled(10, 1, shape)[0][:2])
    assert decoder.call(swap_out_and_in, shape)
    for process in (prompt, decoder):
        process.call(steps.unlink)
    end(prompt, decoder)


def swap_out_and_in(state: SimpleNamespace, shape: list[int]) -> bool:
    """To a CPU cache and back into other blocks."""
    host = [torch.zeros(shape, dtype=torch.float16)]
    desc = CacheDesc(1, shape, DataType.DT_FLOAT16, Placement.HOST)
    cpu_cache = Cache.create_cpu_cache(desc, [host[0].data_ptr()])
    device = state.tensors["cache"][0]
    state.manager.swap_blocks(state.caches["cache"], cpu_cache, {0: 0, 1: 1})
    state.manager.swap_blocks(cpu_cache, state.caches["cache"], {0: 2, 1: 3})
    torch.npu.synchronize()
    moved = device.cpu()
    return torch.equal(host[0][:2], moved[:2]) and torch.equal(moved[2:], moved[:2])


def test_pull_from_cache_to_blocks(peers: Peers) -> None:
    prompt, decoder = two_sided(peers, {"mem_pool_cfg": POOL})
    prompt.call(steps.allocate, "cache", 10, 2, [1, 64], [CacheKey(P, 0)])
    decoder.call(steps.register, "blocks", 50, 2, [4, 64])
    link(prompt, decoder)

    decoder.call(steps.call, "pull_blocks", CacheKey(P, 0), "blocks", {"src_blocks": [], "dst_blocks": [0]})

    wanted = filled(50, 2, [4, 64])
    for tensor, entry in zip(wanted, filled(10, 2, [1, 64]), strict=True):
        tensor[0] = entry[0]
    assert equal(decoder.call(steps.content, "blocks"), wanted)
    for process in (prompt, decoder):
        process.call(steps.unlink)
    end(prompt, decoder)


def test_pull_blocks_xpyd_sample(peers: Peers) -> None:
    prefills, decodes = peers(2), peers(2)
    address = int(ipaddress.ip_address("127.0.0.1"))
    shape, servers = [8, 32], []
    for i, prefill in enumerate(prefills):
        port = free_base()
        cluster_id = (address << 16) | port
        options = {"local_comm_res": "", "listen_ip_info": f"127.0.0.1:{port}"}
        prefill.call(steps.start, "PROMPT", cluster_id, i, options)
        prefill.call(steps.register, "cache", 100 * i, 2, shape, key(cluster_id))
        servers.append((cluster_id, port))
    for k, decode in enumerate(decodes):
        decode.call(steps.start, "DECODER", (address << 16) | free_base(), 2 + k, {"local_comm_res": ""})
        decode.call(steps.register, "cache", 500 + k, 2, shape)

        decode.call(steps.link_clusters, servers)  # one call for all of them
        for i, (cluster_id, _) in enumerate(servers):
            decode.call(steps.call, "pull_blocks", key(cluster_id), "cache", [k, 5], [2 * i, 2 * i + 1])

        wanted = filled(500 + k, 2, shape)
        for i in range(2):
            for tensor, sent in zip(wanted, filled(100 * i, 2, shape), strict=True):
                tensor[[2 * i, 2 * i + 1]] = sent[[k, 5]]
        assert equal(decode.call(steps.content, "cache"), wanted)
        decode.call(steps.unlink_clusters, servers)
    end(*decodes, *prefills)


def one_sided(peers: Peers) -> tuple[Peer, Peer, tuple[int, int], tuple[int, int]]:
    prompt, decoder = peers(2)
    ports = (
        prompt.call(steps.start, "PROMPT", P, 0, ONE_SIDED),
        decoder.call(steps.start, "DECODER", D, 1, ONE_SIDED),
    )
    return prompt, decoder, (P, ports[0]), (D, ports[1])


def test_push_cache_sample(peers: Peers) -> None:
    """The decoder pushes to the prompt, into the cache with the id 1, the peer's first one."""
    prompt, decoder = peers(2)
    options = {**ONE_SIDED, "mem_pool_cfg": POOL}
    port = prompt.call(steps.start, "PROMPT", P, 0, options)
    decoder.call(steps.start, "DECODER", D, 1, options)
    assert prompt.call(steps.allocate, "cache", 10, 2, [2, 64]) == 1
    assert decoder.call(steps.allocate, "cache", 50, 2, [2, 64]) == 1
    decoder.call(steps.link_clusters, [(P, port)])

    to_first = CacheKeyByIdAndIndex(P, cache_id=1, batch_index=0)
    decoder.call(steps.call, "push_cache", to_first, "cache", {"src_batch_index": 0})

    wanted = filled(10, 2, [2, 64])
    for tensor, sent in zip(wanted, filled(50, 2, [2, 64]), strict=True):
        tensor[0] = sent[0]
    assert equal(prompt.call(steps.content, "cache"), wanted)
    decoder.call(steps.unlink_clusters, [(P, port)])
    end(prompt, decoder)


def test_push_blocks_sample(peers: Peers) -> None:
    prompt, decoder, to_prompt, _ = one_sided(peers)
    shape = [4, 16]
    prompt.call(steps.register, "cache", 10, 2, shape, key(P))
    decoder.call(steps.register, "cache", 50, 2, shape, key(D))
    decoder.call(steps.link_clusters, [to_prompt])

    blocks = {"src_blocks": [0, 1], "dst_blocks": [0, 2]}
    decoder.call(steps.call, "push_blocks", BlocksCacheKey(P, 0), "cache", blocks)

    wanted = filled(10, 2, shape)
    for tensor, sent in zip(wanted, filled(50, 2, shape), strict=True):
        tensor[[0, 2]] = sent[[0, 1]]
    assert equal(prompt.call(steps.content, "cache"), wanted)
    prompt.call(steps.unlink_clusters, [(D, None)], True)  # both sides, with force and without an address
    decoder.call(steps.unlink_clusters, [(P, None)], True)
    end(prompt, decoder)


def test_switch_role_sample(peers: Peers) -> None:
    prompt, decoder = peers(2)
    shape = [4, 16]
    port = prompt.call(steps.start, "PROMPT", P, 0, ONE_SIDED)
    decoder.call(steps.start, "DECODER", D, 1, {"local_comm_res": ""})
    prompt.call(steps.register, "cache", 10, 2, shape, key(P))
    decoder.call(steps.register, "cache", 50, 2, shape, key(D))
    decoder.call(steps.link_clusters, [(P, port)])
    decoder.call(steps.call, "pull_blocks", key(P), "cache", [0, 1], [0, 1])
    decoder.call(steps.unlink_clusters, [(P, port)])

    prompt.call(switch_role, "DECODER", None)
    new_port = decoder.call(switch_role, "PROMPT", {"llm.listenIpInfo": "127.0.0.1:0"})
    prompt.call(steps.link_clusters, [(D, new_port)])
    decoder.call(  # the server now, over the link that the other made
        steps.call, "push_blocks", key(P), "cache", [2, 3], [2, 3], range(2), range(2), 1
    )  # fmt: skip

    ours, theirs = filled(10, 2, shape), filled(50, 2, shape)
    for one, other in zip(ours, theirs, strict=True):
        other[:2] = one[:2]
        one[2:] = other[2:]
    assert equal(prompt.call(steps.content, "cache"), ours)
    assert equal(decoder.call(steps.content, "cache"), theirs)
    prompt.call(steps.unlink_clusters, [(D, None)], True)
    decoder.call(steps.unlink_clusters, [(P, None)], True)
    end(prompt, decoder)


def switch_role(state: SimpleNamespace, role: str, options: Any) -> int:
    if options is None:
        state.datadist.switch_role(LLMRole[role])
    else:
        state.datadist.switch_role(LLMRole[role], options)
    return state.datadist.listen_port or 0


def test_hixl_transfer_backend_sample(peers: Peers) -> None:
    """Both listen, both link, the one pulls and the other pushes, and each unlinks without an address.

    Lifted: one link does for both directions.
    """
    prompt, decoder = peers(2)
    shape = [4, 16]
    backend = {**ONE_SIDED, "transfer_backend": "hixl"}
    ports = [
        prompt.call(steps.start, "PROMPT", P, 0, backend),
        decoder.call(steps.start, "DECODER", D, 1, backend),
    ]
    prompt.call(steps.register, "cache", 10, 2, shape, key(P))
    decoder.call(steps.register, "cache", 50, 2, shape, key(D))

    prompt.call(steps.link_clusters, [(D, ports[1])])
    decoder.call(steps.link_clusters, [(P, ports[0])])
    prompt.call(steps.call, "pull_blocks", key(D), "cache", [0, 1], [2, 3])
    decoder.call(steps.call, "push_blocks", key(P), "cache", {"src_blocks": [3], "dst_blocks": [0]})

    ours, theirs = filled(10, 2, shape), filled(50, 2, shape)
    for one, other in zip(ours, theirs, strict=True):
        one[[2, 3]] = other[[0, 1]]
        one[0] = other[3]
    assert equal(prompt.call(steps.content, "cache"), ours)
    prompt.call(steps.unlink_clusters, [(D, None)], False)
    decoder.call(steps.unlink_clusters, [(P, None)], False)
    end(prompt, decoder)


class ConstantSynchronizer(LayerSynchronizer):
    def synchronize_layer(self, layer_index: int, timeout_in_millis: int | None) -> bool:
        return True


def test_transfer_cache_async_sample(peers: Peers) -> None:
    """It gives no block indices, so only block 0 goes; and unregisters after unlinking."""
    prompt, decoder, _, to_decoder = one_sided(peers)
    shape = [4, 16]
    prompt.call(steps.register, "cache", 10, 2, shape, key(P))
    decoder.call(steps.register, "cache", 50, 2, shape, key(D))
    prompt.call(steps.link_clusters, [to_decoder])

    prompt.call(transfer_cache_async)

    wanted = filled(50, 2, shape)
    for tensor, sent in zip(wanted, filled(10, 2, shape), strict=True):
        tensor[0] = sent[0]
    assert equal(decoder.call(steps.content, "cache"), wanted)
    prompt.call(steps.unlink_clusters, [(D, None)], True)
    decoder.call(steps.unlink_clusters, [(P, None)], True)
    for process in (prompt, decoder):
        process.call(unregister)
    end(prompt, decoder)


def transfer_cache_async(state: SimpleNamespace) -> None:
    config = TransferWithCacheKeyConfig(BlocksCacheKey(D, 0), range(0, 1), range(0, 1))
    task = state.manager.transfer_cache_async(state.caches["cache"], ConstantSynchronizer(), [config])
    task.get_results()


def unregister(state: SimpleNamespace) -> None:
    state.manager.unregister_cache(state.caches["cache"].cache_id)
