"""What the shipped samples do, in one script as a user of the original has it: it knows llm_datadist only.

``python -m torch_llm_datadist run --as-llm-datadist sample_script.py`` runs it, both roles in this process.
"""

import torch
import torch_npu  # noqa: F401
from llm_datadist import (  # type: ignore[import-not-found]
    BlocksCacheKey,
    Cache,
    CacheDesc,
    CacheKey,
    CacheKeyByIdAndIndex,
    DataType,
    LayerSynchronizer,
    LLMClusterInfo,
    LLMConfig,
    LLMDataDist,
    LLMException,
    LLMRole,
    LLMStatusCode,
    Placement,
    TransferWithCacheKeyConfig,
)
from llm_datadist.v2.cache_manager import CacheManager  # type: ignore[import-not-found]

P, D = 1, 2
SHAPE = [4, 16]
POOL = '{"memory_size": 1048576, "page_shift": 16}'


def start(role, cluster_id, device):
    datadist = LLMDataDist(role, cluster_id)
    config = LLMConfig()
    config.device_id = device
    config.local_comm_res = ""
    config.mem_pool_cfg = POOL
    for port in range(26000 + device, 30000, 8):  # the first that is free
        config.listen_ip_info = f"127.0.0.1:{port}"
        try:
            datadist.init(config.generate_options())
        except LLMException as error:
            if error.status_code != LLMStatusCode.LLM_FAILED:
                raise
            continue
        return datadist, port
    raise RuntimeError("no port")


def peer(cluster_id, port=None):
    cluster = LLMClusterInfo()
    cluster.remote_cluster_id = cluster_id
    cluster.append_local_ip_info("127.0.0.1", 0)
    if port is not None:
        cluster.append_remote_ip_info("127.0.0.1", port)
    return cluster


def link(datadist, cluster_id, port):
    status, _ = datadist.link_clusters([peer(cluster_id, port)], 5000)
    assert status == LLMStatusCode.LLM_SUCCESS, status


def unlink(*ends):
    """Both sides, with force."""
    for datadist, other in ends:
        status, _ = datadist.unlink_clusters([peer(other)], 5000, force=True)
        assert status == LLMStatusCode.LLM_SUCCESS, status


def register(datadist, device, value, key):
    tensors = [torch.full(SHAPE, value, dtype=torch.float16, device=f"npu:{device}") for _ in range(2)]
    desc = CacheDesc(num_tensors=2, shape=SHAPE, data_type=DataType.DT_FLOAT16, placement=Placement.DEVICE)
    addresses = [int(tensor.data_ptr()) for tensor in tensors]
    return datadist.cache_manager.register_blocks_cache(desc, addresses, key), tensors


def blocks_of(tensors):
    torch.npu.synchronize(tensors[0].device)
    return [int(value) for value in tensors[0][:, 0].cpu()]


class Always(LayerSynchronizer):
    def synchronize_layer(self, layer_index, timeout_in_millis):
        return True


prompt, prompt_port = start(LLMRole.PROMPT, P, 0)
decoder, decoder_port = start(LLMRole.DECODER, D, 1)
assert isinstance(prompt.cache_manager, CacheManager)
p_cache, p_tensors = register(prompt, 0, 1, BlocksCacheKey(P, 0))
d_cache, d_tensors = register(decoder, 1, 2, BlocksCacheKey(D, 0))
torch.npu.synchronize(0)
torch.npu.synchronize(1)

link(decoder, P, prompt_port)
decoder.cache_manager.pull_blocks(BlocksCacheKey(P, 0), d_cache, src_blocks=[0, 1], dst_blocks=[0, 1])
assert blocks_of(d_tensors) == [1, 1, 2, 2]
print("pull_blocks_sample")

host = [torch.zeros(SHAPE, dtype=torch.float16) for _ in range(2)]
cpu_desc = CacheDesc(2, SHAPE, DataType.DT_FLOAT16, Placement.HOST)
cpu_cache = Cache.create_cpu_cache(cpu_desc, [tensor.data_ptr() for tensor in host])
decoder.cache_manager.swap_blocks(d_cache, cpu_cache, {0: 3})
assert int(host[0][3, 0]) == 1
print("swap_blocks")

decoder.cache_manager.push_blocks(BlocksCacheKey(P, 0), d_cache, src_blocks=[2, 3], dst_blocks=[0, 2])
assert blocks_of(p_tensors) == [2, 1, 2, 1]
print("push_blocks_sample")

desc = CacheDesc(2, [2, 64], DataType.DT_FLOAT16)
theirs = prompt.cache_manager.allocate_cache(desc, [CacheKey(P, 0), CacheKey(P, 1)])
ours = decoder.cache_manager.allocate_cache(desc)
key = CacheKeyByIdAndIndex(P, theirs.cache_id, batch_index=0)
decoder.cache_manager.push_cache(key, ours, src_batch_index=0)
decoder.cache_manager.pull_cache(key, ours, 1)
prompt.cache_manager.deallocate_cache(theirs)
print("push_cache_sample")
unlink((prompt, D), (decoder, P))

link(prompt, D, decoder_port)
configs = [TransferWithCacheKeyConfig(BlocksCacheKey(D, 0), range(0, 1), range(0, 1))]
task = prompt.cache_manager.transfer_cache_async(p_cache, Always(), configs)
assert task.get_results() == [LLMStatusCode.LLM_SUCCESS]
assert blocks_of(d_tensors)[0] == 2
unlink((prompt, D), (decoder, P))
print("transfer_cache_async_sample")

prompt.switch_role(LLMRole.DECODER)
decoder.switch_role(LLMRole.PROMPT, {"llm.listenIpInfo": f"127.0.0.1:{decoder_port}"})
link(prompt, D, decoder_port)
decoder.cache_manager.push_blocks(
    BlocksCacheKey(P, 0), d_cache, [2, 3], [2, 3], range(0, 2), range(0, 2), tensor_num_per_layer=1
)
assert blocks_of(p_tensors)[2:] == [2, 2]
unlink((prompt, D), (decoder, P))
print("switch_role_sample")

for datadist, cache in ((prompt, p_cache), (decoder, d_cache)):
    datadist.cache_manager.unregister_cache(cache.cache_id)
    datadist.finalize()
