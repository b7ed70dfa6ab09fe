"""What the examples of the API pages begin with."""

import torch

import torch_llm_datadist as llm_datadist
from torch_llm_datadist import (
    BlocksCacheKey,
    CacheDesc,
    DataType,
    LLMClusterInfo,
    LLMConfig,
    LLMDataDist,
)

LAYERS, BLOCKS = 2, 8


def start(cluster_id, device):
    config = LLMConfig()
    config.device_id = device
    config.enable_cache_manager = True
    config.enable_remote_cache_accessible = True
    config.listen_ip_info = "127.0.0.1:0"  # port 0: the system chooses
    config.mem_pool_cfg = '{"memory_size": 4194304}'  # for allocate_*
    instance = LLMDataDist(llm_datadist.LLMRole.MIX, cluster_id)
    instance.init(config.generate_options())
    return instance


def register(instance, device):
    shape = [BLOCKS, 16, 2, 8]  # blocks of 16 tokens, 2 KV heads of 8
    tensors = [torch.zeros(shape, dtype=torch.float16, device=f"npu:{device}") for _ in range(2 * LAYERS)]
    desc = CacheDesc(2 * LAYERS, shape, DataType.DT_FLOAT16)  # K0, V0, K1, V1
    key = BlocksCacheKey(instance.cluster_id)
    return instance.cache_manager.register_blocks_cache(desc, tensors, key)


prefill, decode = start(1, 0), start(2, 1)
source, target = register(prefill, 0), register(decode, 1)

desc = CacheDesc(2, [3, 64], DataType.DT_FLOAT16)  # one layer, a batch of 3 requests
ours, theirs = (each.cache_manager.allocate_cache(desc) for each in (prefill, decode))

peer = LLMClusterInfo()
peer.remote_cluster_id = 2
peer.append_local_ip_info("127.0.0.1", 0)
peer.append_remote_ip_info("127.0.0.1", decode.listen_port)
prefill.link_clusters([peer], timeout=10_000)  # one end links
decode.wait_linked([1])
