"""One push between two instances of this process, verified; what ``doctor`` runs as its last step."""

from __future__ import annotations

import sys
import time

import torch
import torch_npu

import torch_llm_datadist as llm_datadist

KEYS_AND_VALUES, BLOCKS, BLOCK_BYTES = 2, 16, 32 << 10


def _instance(
    cluster_id: int, device: int, tensors: list[torch.Tensor]
) -> tuple[llm_datadist.LLMDataDist, llm_datadist.Cache]:
    config = llm_datadist.LLMConfig()
    config.device_id = device
    config.enable_cache_manager = True
    config.enable_remote_cache_accessible = True
    config.listen_ip_info = "127.0.0.1:0"
    instance = llm_datadist.LLMDataDist(llm_datadist.LLMRole.MIX, cluster_id)
    instance.init(config.generate_options())
    desc = llm_datadist.CacheDesc(len(tensors), list(tensors[0].shape), llm_datadist.DataType.DT_UINT8)
    cache = instance.cache_manager.register_blocks_cache(
        desc, tensors, llm_datadist.BlocksCacheKey(cluster_id)
    )
    return instance, cache


def main() -> int:
    count = torch_npu.npu.device_count()
    if count == 0:
        print("torch_npu sees no device", file=sys.stderr)
        return 1
    sender_device, receiver_device = 0, count - 1
    sent = torch.randint(0, 256, (KEYS_AND_VALUES, BLOCKS, BLOCK_BYTES), dtype=torch.uint8)
    source = [half.to(f"npu:{sender_device}") for half in sent]
    target = [torch.zeros_like(half).to(f"npu:{receiver_device}") for half in sent]
    sender, cache = _instance(1, sender_device, source)
    receiver, _ = _instance(2, receiver_device, target)
    try:
        peer = llm_datadist.LLMClusterInfo()
        peer.remote_cluster_id = 2
        peer.append_local_ip_info("127.0.0.1", 0)
        assert receiver.listen_port is not None
        peer.append_remote_ip_info("127.0.0.1", receiver.listen_port)
        code, _ = sender.link_clusters([peer])
        if code != llm_datadist.LLMStatusCode.LLM_SUCCESS:
            print(f"linking two instances of one process failed: {code}", file=sys.stderr)
            return 1
        order = list(range(BLOCKS))
        begin = time.monotonic()
        sender.cache_manager.push_blocks(llm_datadist.BlocksCacheKey(2), cache, order, order[::-1])
        took = time.monotonic() - begin
        if not torch.equal(torch.stack([half.cpu() for half in target]), sent.flip(1)):
            print("a push arrived with wrong bytes", file=sys.stderr)
            return 1
    finally:
        sender.finalize()
        receiver.finalize()
    print(
        f"{sent.numel() >> 10} KiB from npu:{sender_device} to npu:{receiver_device}, of {count} devices, "
        f"arrived intact in {took * 1e3:.1f} ms"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
