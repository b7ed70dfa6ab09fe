"""2.9, the older API: KvCacheManager; and 5.2, the connectors that used it."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.call_sequences import steps
from tests.call_sequences.steps import filled, values
from tests.call_sequences.test_samples import equal
from tests.conformance.case import INVALID, check_raises
from tests.peers import Peer
from torch_llm_datadist import (
    CacheDesc,
    CacheKey,
    DataType,
    KvCacheManager,
    LayerSynchronizer,
    LLMDataDist,
    LLMRole,
    LLMStatusCode,
    _native,
)

Peers = Callable[[int], list[Peer]]
PROMPT, DECODER = 1, 2
SHAPE = [1, 64]
KEYS, VALUES, HIDDEN = 1, 2, 3  # model ids


def start(state: SimpleNamespace, role: str, cluster_id: int, device: int) -> int:
    """The options by hand, as the connectors gave them."""
    torch.npu.set_device(device)
    options = {
        "llm.SyncKvCacheWaitTime": "5000",
        "ge.exec.deviceId": str(device),
        "ge.flowGraphMemMaxSize": str(4 * 2**20),
        "llm.EnableSwitchRole": "1",
    }
    if role == "PROMPT":
        options["llm.listenIpInfo"] = "127.0.0.1:0"
    state.datadist = LLMDataDist(LLMRole[role], cluster_id)
    state.datadist.init(options)
    state.manager = state.datadist.kv_cache_manager
    state.tensors, state.caches, state.device = {}, {}, device
    return state.datadist.listen_port or 0


def create_npu_tensors(
    shape: list[int], dtype: torch.dtype, addresses: list[int], device: int
) -> list[torch.Tensor]:
    """What torchair's function of that name does for them: tensors over memory of the pool."""
    native = _native.load()
    return [native.tensor_from_address(address, shape, dtype, device) for address in addresses]


def put(state: SimpleNamespace, request: int) -> None:
    """Allocates with keys, writes, and lets go: the keys keep the memory."""
    for model_id in (KEYS, VALUES, HIDDEN):
        desc = CacheDesc(2, SHAPE, DataType.DT_FLOAT16)
        cache = state.manager.allocate_cache(desc, [CacheKey(PROMPT, request, model_id)])
        (addresses,) = cache.per_device_tensor_addrs
        for i, tensor in enumerate(create_npu_tensors(SHAPE, torch.float16, addresses, state.device)):
            tensor.copy_(values(10 * model_id + i, SHAPE))
        torch.npu.synchronize()
        state.manager.deallocate_cache(cache)


def pull(state: SimpleNamespace, request: int) -> list[torch.Tensor]:
    found = []
    for model_id in (KEYS, VALUES, HIDDEN):
        cache = state.manager.allocate_cache(CacheDesc(2, SHAPE, DataType.DT_FLOAT16))
        state.manager.pull_cache(CacheKey(PROMPT, request, model_id), cache, 0)
        torch.npu.synchronize()
        (addresses,) = cache.per_device_tensor_addrs
        tensors = create_npu_tensors(SHAPE, torch.float16, addresses, state.device)
        found += [tensor.cpu() for tensor in tensors]
        for i, tensor in enumerate(tensors):
            (same,) = state.manager.get_cache_tensors(cache, i)
            assert (same.data_ptr(), same.shape, same.dtype) == (
                tensor.data_ptr(),
                tensor.shape,
                tensor.dtype,
            )
        state.manager.deallocate_cache(cache)
    return found


def test_connectors_of_the_older_api(peers: Peers) -> None:
    """Lifted: the original needs a package of its own for it."""
    prompt, decoder = peers(2)
    port = prompt.call(start, "PROMPT", PROMPT, 0)
    decoder.call(start, "DECODER", DECODER, 1)
    decoder.call(steps.link_clusters, [(PROMPT, port)], 20000)
    request = hash(("request", 7)) % 2**63

    for _ in range(2):  # a pulled key is gone, so the request may come again
        prompt.call(put, request)
        found = decoder.call(pull, request)
        assert equal(found, [t for model_id in (1, 2, 3) for t in filled(10 * model_id, 2, SHAPE)])

    decoder.call(check_decoder, PROMPT)
    prompt.call(check_prompt, DECODER)


def check_decoder(state: SimpleNamespace, linked_to: int) -> None:
    manager = state.manager
    desc = CacheDesc(2, SHAPE, DataType.DT_FLOAT16)
    assert isinstance(manager, KvCacheManager)
    assert manager.is_initialized()
    state.datadist.check_link_status(linked_to)
    check_raises(LLMStatusCode.LLM_NOT_YET_LINK, lambda: state.datadist.check_link_status(9))
    check_raises(INVALID, lambda: state.datadist.cache_manager)
    check_raises(INVALID, lambda: manager.allocate_cache(desc, [CacheKey(1, 1)]))
    check_raises(INVALID, lambda: manager.remove_cache_key(CacheKey(1, 1)))
    cache = manager.allocate_cache(desc)
    check_raises(INVALID, lambda: manager.get_cache_tensors(cache, 2))
    check_raises(TypeError, lambda: manager.get_cache_tensors(1))
    check_raises(INVALID, lambda: manager.pull_cache(CacheKey(1, 1), cache, src_cache_offset=0))
    check_raises(INVALID, lambda: manager.transfer_cache_async(cache, Never(), []))
    manager.copy_cache(cache, cache)
    state.datadist.finalize()
    assert not manager.is_initialized()


class Never(LayerSynchronizer):
    def synchronize_layer(self, layer_index: int, timeout_in_millis: int | None) -> bool:
        raise AssertionError


def check_prompt(state: SimpleNamespace, _: int) -> None:
    cache = state.manager.allocate_cache(CacheDesc(2, SHAPE, DataType.DT_FLOAT16), [CacheKey(1, 1)])
    state.manager.remove_cache_key(CacheKey(1, 1))
    said = check_raises(INVALID, lambda: state.manager.pull_cache(CacheKey(1, 1), cache))
    assert "for the role DECODER, this instance is PROMPT" in said
    instance: Any = state.datadist
    check_raises(INVALID, lambda: instance.switch_role(LLMRole.PROMPT))
    instance.switch_role(LLMRole.DECODER)
    check_raises(INVALID, lambda: instance.switch_role(LLMRole.PROMPT))
    assert instance.listen_port is None
    instance.finalize()


def test_older_switch_role_needs_its_option(peers: Peers) -> None:
    (one,) = peers(1)

    one.call(check_switch_role)


def check_switch_role(state: SimpleNamespace) -> None:
    state.datadist = LLMDataDist(LLMRole.MIX, 1)
    state.datadist.init({"ge.exec.deviceId": "0"})

    assert "enable_switch_role" in check_raises(INVALID, lambda: state.datadist.switch_role(LLMRole.DECODER))


def test_a_cache_of_the_older_api_lives_until_it_is_deallocated(peers: Peers) -> None:
    """Mended: in the original its destructor frees what keys still name."""
    (one,) = peers(1)

    one.call(start, "PROMPT", PROMPT, 0)
    one.call(check_life)


def check_life(state: SimpleNamespace) -> None:
    """The pool has 4 MiB; in the original the object's destructor gives the memory back."""
    desc = CacheDesc(1, [1, 2**20], DataType.DT_FLOAT)
    cache = state.manager.allocate_cache(desc)
    del cache

    check_raises(LLMStatusCode.LLM_OUT_OF_MEMORY, lambda: state.manager.allocate_cache(desc))


@pytest.mark.parametrize("name", ["Tensor", "TensorDesc"])
def test_tensors_of_the_older_api_are_torchs(name: str) -> None:
    """2.9: ``get_cache_tensors`` gives torch tensors; the graph engine's classes have no counterpart."""
    import torch_llm_datadist

    assert not hasattr(torch_llm_datadist, name)
