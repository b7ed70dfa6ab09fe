"""Mistakes of a user: mypy finds one in each line that says so, and none elsewhere. Nothing here is run."""

from __future__ import annotations

import torch

import torch_llm_datadist as llm_datadist
from torch_llm_datadist import BlocksCacheKey, CacheDesc, CacheKeyByIdAndIndex, DataType, LLMDataDist, LLMRole

print(llm_datadist.NoSuchName)  # mistake
LLMDataDist(1, 1)  # mistake
prefill = LLMDataDist(LLMRole.PROMPT, "1")  # mistake
prefill.init({"ge.exec.deviceId": 0})  # mistake
CacheDesc(4, [8, 16], torch.float16)  # mistake
cache = prefill.cache_manager.register_blocks_cache(CacheDesc(2, [8], DataType.DT_INT8), [1, 2])
prefill.cache_manager.push_blocks(CacheKeyByIdAndIndex(2, 1), cache, [0], [0])  # mistake
prefill.cache_manager.push_blocks(BlocksCacheKey(2), cache, [0.5], [0])  # mistake
prefill.cache_manager.pull_blocks(BlocksCacheKey(2), cache, [0], [0], src_layers=range(1))  # mistake
prefill.cache_manager.pull_cache(BlocksCacheKey(2), cache)  # mistake
prefill.cache_manager.transfer_cache_async(cache, lambda layer: True, [])  # mistake
found: str = prefill.link("kv", {1: 0, 2: 1}, "{}")  # mistake
llm_datadist.ops.push_blocks(None, cache.tensors, torch.tensor([0]), torch.tensor([0]), link=1)  # mistake
