"""0.4 and the signatures of 2.2 to 2.7: the names that code for the original imports and calls."""

from __future__ import annotations

import importlib
import inspect
import logging
import re
import subprocess
import sys
from typing import Any

import pytest

import torch_llm_datadist as datadist
from torch_llm_datadist.cache_manager import CacheManager

# 0.4: what `import llm_datadist` exports in its current mode.
NAMES = [
    "BlocksCacheKey", "Cache", "CacheDesc", "CacheKey", "CacheKeyByIdAndIndex", "CacheTask", "DataType",
    "KvCache", "LLMClusterInfo", "LLMConfig", "LLMDataDist", "LLMException", "LLMRole", "LLMStatusCode",
    "LayerSynchronizer", "LlmConfig", "MemInfo", "Memtype", "Placement", "RegisterMemStatus", "Status",
    "TransferConfig", "TransferWithCacheKeyConfig",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_each_name_of_the_original_can_be_imported(name: str) -> None:
    scope: dict[str, Any] = {}
    exec(f"from torch_llm_datadist import {name}", scope)

    assert scope[name] is getattr(datadist, name)
    assert name in datadist.__all__
    assert name in dir(datadist)


def test_a_star_import_gives_every_name() -> None:
    """Mended: in the original it raises ModuleNotFoundError without the package of the older API."""
    scope: dict[str, Any] = {}
    exec("from torch_llm_datadist import *", scope)

    assert set(NAMES) <= scope.keys()


def test_aliases_are_the_same_objects() -> None:
    assert datadist.LlmConfig is datadist.LLMConfig
    assert datadist.KvCache is datadist.Cache


def test_importing_the_package_imports_neither_torch_nor_numpy() -> None:
    heavy = ("torch", "torch_npu", "numpy")
    code = f"import sys, torch_llm_datadist; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


def test_importing_leaves_the_environment_alone() -> None:
    """Mended: the original sets AUTO_USE_UC_MEMORY."""
    code = "import os; old = dict(os.environ); import torch_llm_datadist; print(old == os.environ)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "True"


def test_the_logger_is_named_and_has_no_handler() -> None:
    """Mended: the original prints to stdout."""
    logger = logging.getLogger("torch_llm_datadist")

    assert logger.handlers == []
    assert logger.level == logging.NOTSET


def test_a_name_that_is_none_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'LLMDatadist'"):
        _ = datadist.LLMDatadist


# Parameter names in order, with "=default" where there is one. After "*" they are keyword-only.
SIGNATURES: dict[str, str] = {
    "LLMDataDist": "role, cluster_id",
    "LLMDataDist.init": "options",
    "LLMDataDist.finalize": "",
    "LLMDataDist.link_clusters": "clusters, timeout=3000",
    "LLMDataDist.unlink_clusters": "clusters, timeout=3000, force=False",
    "LLMDataDist.link": "comm_name, cluster_rank_info, rank_table",
    "LLMDataDist.unlink": "comm_id",
    "LLMDataDist.query_register_mem_status": "comm_id",
    "LLMDataDist.switch_role": "role, switch_options=None",
    "LLMDataDist.check_link_status": "remote_cluster_id",
    "LLMConfig": "",
    "LLMConfig.generate_options": "",
    "LLMConfig.gen_options": "",
    "LLMClusterInfo": "",
    "LLMClusterInfo.append_local_ip_info": "ip, port",
    "LLMClusterInfo.append_remote_ip_info": "ip, port",
    "CacheDesc": "num_tensors, shape, data_type, placement=<Placement.DEVICE: 1>, batch_dim_index=0, "
    "seq_len_dim_index=-1, kv_tensor_format=None",
    "CacheDesc.update_dim": "dim_index, dim_value",
    "Cache.create_cpu_cache": "cache_desc, addrs",
    "BlocksCacheKey": "*args, **kwargs",
    "CacheKey": "*args, **kwargs",
    "CacheKeyByIdAndIndex": "cluster_id, cache_id, batch_index=0",
    "MemInfo": "mem_type, addr, size",
    "LayerSynchronizer.synchronize_layer": "layer_index, timeout_in_millis",
    "TransferConfig": "dst_cluster_id, dst_addrs, src_layer_range=None, src_batch_index=0",
    "TransferWithCacheKeyConfig": "cache_key, src_layer_range=None, dst_layer_range=None, src_batch_index=0",
    "CacheTask.synchronize": "timeout_in_millis=None",
    "CacheTask.get_results": "timeout_in_millis=None",
    "Status": "status_code",
    "CacheManager.allocate_cache": "cache_desc, cache_keys=()",
    "CacheManager.allocate_blocks_cache": "cache_desc, blocks_cache_key=None",
    "CacheManager.deallocate_cache": "cache",
    "CacheManager.deallocate_blocks_cache": "cache",
    "CacheManager.register_cache": "cache_desc, addrs, cache_keys=(), remote_accessible=None",
    "CacheManager.register_blocks_cache": "cache_desc, addrs, blocks_cache_key=None, remote_accessible=None",
    "CacheManager.unregister_cache": "cache_id",
    "CacheManager.remove_cache_key": "cache_key",
    "CacheManager.pull_cache": "cache_key, cache, batch_index=0, size=-1",
    "CacheManager.pull_blocks": "src_cache_key, dst_cache, src_blocks=(), dst_blocks=()",
    "CacheManager.push_cache": "dst_cache_key, src_cache, src_batch_index=0, src_layer_range=None, "
    "dst_layer_range=None, size=-1, tensor_num_per_layer=2",
    "CacheManager.push_blocks": "dst_cache_key, src_cache, src_blocks=(), dst_blocks=(), "
    "src_layer_range=None, dst_layer_range=None, tensor_num_per_layer=2",
    "CacheManager.copy_cache": "dst, src, dst_batch_index=0, src_batch_index=0, offset=0, size=-1, "
    "req_id=None",
    "CacheManager.copy_blocks": "cache, copy_block_info",
    "CacheManager.swap_blocks": "src_cache, dst_cache, src_to_dst",
    "CacheManager.transfer_cache_async": "src_cache, layer_synchronizer, transfer_configs, "
    "src_block_indices=None, dst_block_indices=None, dst_block_memory_size=None",
    "CacheManager.remap_registered_memory": "mem_infos",
}  # fmt: skip


@pytest.mark.parametrize("name", SIGNATURES)
def test_each_signature_is_that_of_the_original(name: str) -> None:
    """What this package adds is keyword-only, so a positional call means the same in both."""
    owner, _, method = name.partition(".")
    found: Any = CacheManager if owner == "CacheManager" else getattr(datadist, owner)
    parameters = inspect.signature(getattr(found, method) if method else found).parameters.values()

    shown = [
        str(p.replace(annotation=inspect.Parameter.empty))
        for p in parameters
        if p.name != "self" and p.kind != p.KEYWORD_ONLY
    ]

    assert ", ".join(shown) == SIGNATURES[name]


@pytest.mark.parametrize("name", SIGNATURES)
def test_each_docstring_names_the_seed_or_the_page_it_comes_from(name: str) -> None:
    owner, _, method = name.partition(".")
    found: Any = CacheManager if owner == "CacheManager" else getattr(datadist, owner)

    assert re.search(
        r"Source: (manual pages?|seeds?) ", inspect.getdoc(getattr(found, method) if method else found)
    )


@pytest.mark.parametrize("method", ["pull_cache", "pull_blocks"])
def test_pulls_take_the_originals_keyword_arguments(method: str) -> None:
    """2.6: they are ``**kwargs`` in the original. Mended (3.2 row 9): an unknown one raises TypeError."""
    parameters = inspect.signature(getattr(CacheManager, method)).parameters

    wanted = {"src_layer_range": None, "dst_layer_range": None, "tensor_num_per_layer": 2}
    assert {name: parameters[name].default for name in wanted} == wanted
    assert not any(p.kind == p.VAR_KEYWORD for p in parameters.values())


PROPERTIES = {
    "LLMDataDist": "cluster_id cache_manager kv_cache_manager",
    "LLMClusterInfo": "remote_cluster_id remote_role_type local_ip_info_list remote_ip_info_list",
    "LLMException": "status_code",
    "Status": "status_code",
    "CacheDesc": "num_tensors shape data_type placement batch_dim batch_size seq_len_dim_index "
    "kv_tensor_format size",
    "Cache": "cache_id cache_desc tensor_addrs is_blocks_cache",
    "BlocksCacheKey": "cluster_id prompt_cluster_id model_id",
    "CacheKey": "cluster_id prompt_cluster_id req_id model_id prefix_id",
    "CacheKeyByIdAndIndex": "cluster_id cache_id batch_index",
    "MemInfo": "mem_type addr size",
    "TransferConfig": "dst_cluster_id dst_addrs src_layer_range src_batch_index",
    "TransferWithCacheKeyConfig": "cache_key src_layer_range dst_layer_range src_batch_index dst_cluster_id",
}


@pytest.mark.parametrize(
    ("owner", "name"), [(o, n) for o, names in PROPERTIES.items() for n in names.split()]
)
def test_each_property_of_the_original_is_there(owner: str, name: str) -> None:
    assert isinstance(getattr(getattr(datadist, owner), name), property)


# 0.4: `llm_datadist.data_type` offers these, and imports numpy for them only.


def test_numpy_types_of_the_data_types() -> None:
    import numpy

    data_type = importlib.import_module("torch_llm_datadist.data_type")
    to_numpy, from_numpy = data_type.dtype_to_np_dtype, data_type.np_dtype_to_dtype
    for member in datadist.DataType:
        if member not in (datadist.DataType.DT_STRING, datadist.DataType.DT_BF16):
            assert from_numpy[to_numpy[member]] == from_numpy[numpy.dtype(to_numpy[member])] == member
            assert numpy.dtype(to_numpy[member]).itemsize == data_type.element_bytes(member)
            assert to_numpy[member] in data_type.valid_np_dtypes
    assert to_numpy[datadist.DataType.DT_BF16] is numpy.float16  # as in the original; numpy has no bfloat16
    assert from_numpy[numpy.float16] == datadist.DataType.DT_FLOAT16
    assert datadist.DataType.DT_STRING not in to_numpy
    with pytest.raises(KeyError):
        from_numpy[numpy.complex64]
    with pytest.raises(AttributeError, match="np_dtypes"):
        _ = data_type.np_dtypes
