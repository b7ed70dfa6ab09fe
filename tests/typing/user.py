"""Code of a user, for mypy: nothing here is ever run, and nothing of it is an error."""

from __future__ import annotations

import torch

import torch_llm_datadist as llm_datadist
from torch_llm_datadist import (
    BlocksCacheKey,
    Cache,
    CacheDesc,
    CacheKeyByIdAndIndex,
    CacheManager,
    CacheTask,
    DataType,
    LayerSynchronizer,
    LLMClusterInfo,
    LLMConfig,
    LLMDataDist,
    LLMException,
    LLMRole,
    LLMStatusCode,
    Placement,
    RegisterMemStatus,
    TransferWithCacheKeyConfig,
)


class Ready(LayerSynchronizer):
    def synchronize_layer(self, layer_index: int, timeout_in_millis: int | None) -> bool:
        return True


config = LLMConfig()
config.device_id = [0]
config.sync_kv_timeout = "500"
config.enable_cache_manager = True
config.listen_ip_info = "127.0.0.1:0"
options: dict[str, str] = config.generate_options()
prefill = LLMDataDist(LLMRole.PROMPT, 1)
prefill.init(options)
manager: CacheManager = prefill.cache_manager
desc = CacheDesc(4, [8, 16, 64], DataType.DT_FLOAT16, Placement.DEVICE)
tensors = [torch.zeros(8, 16, 64) for _ in range(4)]
cache: Cache = manager.register_blocks_cache(desc, tensors, BlocksCacheKey(1, model_id=0))
also = manager.register_cache(desc, [tensor.data_ptr() for tensor in tensors], remote_accessible=True)
peer = LLMClusterInfo()
peer.remote_cluster_id = 2
peer.append_remote_ip_info("127.0.0.1", 26000)
status, each = prefill.link_clusters([peer], timeout=5000)
good: bool = status == LLMStatusCode.LLM_SUCCESS
codes: list[LLMStatusCode] = each
try:
    one = range(1)
    manager.push_blocks(BlocksCacheKey(2), cache, [0, 1], (2, 3), src_layer_range=one, dst_layer_range=one)
    manager.pull_cache(CacheKeyByIdAndIndex(2, 1, 0), also, 1, -1, src_layer_range=range(2))
except LLMException as error:
    code: LLMStatusCode = error.status_code
task: CacheTask = manager.transfer_cache_async(
    cache, Ready(), [TransferWithCacheKeyConfig(BlocksCacheKey(2), range(2), range(2))], [0], [0]
)
results: list[LLMStatusCode | None] = list(task.get_results(1000))
domain: int = prefill.link("kv", {1: 0, 2: 1}, "{}")
memory: RegisterMemStatus = prefill.query_register_mem_status(domain)
word = torch.zeros(1, dtype=torch.int32)
ids = torch.tensor([0])
llm_datadist.ops.push_blocks(word, cache.tensors, ids, ids, link=prefill.link_id(2))


async def wait() -> None:
    found = await task
    print(found)
