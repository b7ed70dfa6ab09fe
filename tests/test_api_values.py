"""The values of the API — codes, keys, descriptions, options — against the tables of the manual; no device
needed.

Cases name their source: "2.5" is the section of the API's description, "seed 002" a document of the mission.
"""

from __future__ import annotations

import inspect
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from torch_llm_datadist import errors
from torch_llm_datadist.cache import Cache, CacheDesc
from torch_llm_datadist.cache_manager_to_come import CacheManagerToCome
from torch_llm_datadist.cluster import LLMClusterInfo, LLMRole, parse_endpoint
from torch_llm_datadist.config import LLMConfig, LlmConfig
from torch_llm_datadist.data_type import DataType, Placement, element_bytes, from_torch_dtype, torch_dtype
from torch_llm_datadist.errors import LLMException, LLMStatusCode, Status, class_for_code
from torch_llm_datadist.keys import BlocksCacheKey, CacheKey, CacheKeyByIdAndIndex
from torch_llm_datadist.options import read_options

INVALID = LLMStatusCode.LLM_PARAM_INVALID
DESC = CacheDesc(2, [4, 8], DataType.DT_FLOAT16)


def check_raises(expected: type[Exception] | LLMStatusCode, call: Callable[[], object]) -> None:
    if isinstance(expected, LLMStatusCode):
        with pytest.raises(LLMException) as raised:
            call()
        assert raised.value.status_code == expected
    else:
        with pytest.raises(expected) as raised_other:
            call()
        assert type(raised_other.value) is expected


# Codes and exceptions (2.1).

CODES = {
    "LLM_SUCCESS": 0, "LLM_FAILED": 4294967295, "LLM_WAIT_PROCESS_TIMEOUT": 1343270913,
    "LLM_KV_CACHE_NOT_EXIST": 1343270914, "LLM_REPEAT_REQUEST": 1343270915,
    "LLM_REQUEST_ALREADY_COMPLETED": 1343270916, "LLM_PARAM_INVALID": 1343270917,
    "LLM_ENGINE_FINALIZED": 1343270918, "LLM_NOT_YET_LINK": 1343270919, "LLM_ALREADY_LINK": 1343270920,
    "LLM_LINK_FAILED": 1343270921, "LLM_UNLINK_FAILED": 1343270922,
    "LLM_NOTIFY_PROMPT_UNLINK_FAILED": 1343270923, "LLM_CLUSTER_NUM_EXCEED_LIMIT": 1343270924,
    "LLM_PROCESSING_LINK": 1343270925, "LLM_DEVICE_OUT_OF_MEMORY": 1343270926,
    "LLM_PREFIX_ALREADY_EXIST": 1343270927, "LLM_PREFIX_NOT_EXIST": 1343270928,
    "LLM_SEQ_LENOVERLIMIT": 1343270929, "LLM_NO_FREE_BLOCK": 1343270930,
    "LLM_BLOCKS_OUT_OF_MEMORY": 1343270931, "LLM_EXIST_LINK": 1343270936,
    "LLM_FEATURE_NOT_ENABLED": 1343270937, "LLM_TIMEOUT": 1343270938, "LLM_LINK_BUSY": 1343270939,
    "LLM_OUT_OF_MEMORY": 1343270940, "LLM_DEVICE_MEM_ERROR": 507053, "LLM_SUSPECT_REMOTE_ERROR": 507057,
    "LLM_UNKNOWN_ERROR": -1,
}  # fmt: skip


def test_status_codes_are_those_of_the_original() -> None:
    assert {code.name: int(code) for code in LLMStatusCode} == CODES


def test_status_code_prints_its_name() -> None:
    assert str(LLMStatusCode.LLM_TIMEOUT) == f"{LLMStatusCode.LLM_TIMEOUT}" == "LLMStatusCode.LLM_TIMEOUT"


@pytest.mark.parametrize("code", [c for c in LLMStatusCode if c])
def test_each_code_has_an_exception_class_that_carries_it(code: LLMStatusCode) -> None:
    error = class_for_code(int(code))("what happened")

    assert (error.status_code, error.code) == (code, code)
    assert isinstance(error, RuntimeError)
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), copy.args, copy.status_code) == (type(error), error.args, code)


@pytest.mark.parametrize("code", [0, 507046, 12345])
def test_other_numbers_are_failures(code: int) -> None:
    assert class_for_code(code)("x").status_code == LLMStatusCode.LLM_FAILED


def test_no_exception_carries_success() -> None:
    assert LLMException().status_code == LLMStatusCode.LLM_FAILED
    assert LLMException("x", status_code=LLMStatusCode.LLM_SUCCESS).code == LLMStatusCode.LLM_FAILED
    assert LLMException("x", status_code=LLMStatusCode.LLM_TIMEOUT).code == LLMStatusCode.LLM_TIMEOUT
    for kind in vars(errors).values():
        if inspect.isclass(kind) and issubclass(kind, LLMException):
            assert kind().status_code != LLMStatusCode.LLM_SUCCESS


def test_status() -> None:
    assert Status(LLMStatusCode.LLM_SUCCESS).is_ok()
    assert not Status(LLMStatusCode.LLM_TIMEOUT).is_ok()
    assert Status(LLMStatusCode.LLM_TIMEOUT).status_code == LLMStatusCode.LLM_TIMEOUT
    check_raises(TypeError, lambda: Status(0))  # type: ignore[arg-type]


def test_enumerations_have_the_original_numbers() -> None:
    assert [(r.name, int(r)) for r in LLMRole] == [("PROMPT", 1), ("DECODER", 2), ("MIX", 3)]
    assert str(LLMRole.MIX) == "LLMRole.MIX"
    assert [(p.name, int(p)) for p in Placement] == [("HOST", 0), ("DEVICE", 1)]


DATA_TYPES = {
    "DT_FLOAT": (0, 4), "DT_FLOAT16": (1, 2), "DT_INT8": (2, 1), "DT_INT32": (3, 4), "DT_UINT8": (4, 1),
    "DT_INT16": (6, 2), "DT_UINT16": (7, 2), "DT_UINT32": (8, 4), "DT_INT64": (9, 8), "DT_UINT64": (10, 8),
    "DT_DOUBLE": (11, 8), "DT_BOOL": (12, 1), "DT_STRING": (13, 16), "DT_BF16": (27, 2),
}  # fmt: skip


def test_data_types_are_those_of_the_original() -> None:
    assert {d.name: (d.value, element_bytes(d)) for d in DataType} == DATA_TYPES


@pytest.mark.parametrize("data_type", [d for d in DataType if d != DataType.DT_STRING])
def test_each_data_type_has_a_torch_dtype_of_its_size(data_type: DataType) -> None:
    dtype = torch_dtype(data_type)

    assert dtype.itemsize == element_bytes(data_type)
    assert from_torch_dtype(dtype) == data_type


def test_data_types_without_a_counterpart_are_refused() -> None:
    import torch

    check_raises(INVALID, lambda: torch_dtype(DataType.DT_STRING))
    check_raises(INVALID, lambda: from_torch_dtype(torch.complex64))


# Keys (2.5, seed 002).


@pytest.mark.parametrize(
    ("args", "kwargs", "found"),
    [
        ((0, 0), {}, (0, 0)),  # the seed's example
        ((7,), {}, (7, 0)),
        ((), {"cluster_id": 7, "model_id": 2}, (7, 2)),
        ((), {"prompt_cluster_id": 7}, (7, 0)),
        ((7,), {"cluster_id": 8}, (7, 0)),
        ((), {"cluster_id": 7, "prompt_cluster_id": 8}, (7, 0)),
        ((2**64 - 1, 2**64 - 1), {}, (2**64 - 1, 2**64 - 1)),
    ],
)
def test_blocks_cache_key_takes_arguments_as_the_original(
    args: tuple[int, ...], kwargs: dict[str, int], found: tuple[int, int]
) -> None:
    key = BlocksCacheKey(*args, **kwargs)

    assert (key.cluster_id, key.model_id) == found
    assert key.prompt_cluster_id == key.cluster_id


KEY_ERRORS: list[tuple[Any, Callable[[], object]]] = [
    (INVALID, lambda: BlocksCacheKey()),
    (INVALID, lambda: BlocksCacheKey(1, 2, 3)),
    (INVALID, lambda: BlocksCacheKey(1, modelid=2)),
    (INVALID, lambda: BlocksCacheKey(model_id=2)),
    (TypeError, lambda: BlocksCacheKey("1")),
    (TypeError, lambda: BlocksCacheKey(1.0)),
    (TypeError, lambda: BlocksCacheKey(1, "0")),
    (TypeError, lambda: BlocksCacheKey(None)),  # mended: 3.2 row 4
    (TypeError, lambda: BlocksCacheKey(True)),  # mended: 3.2 row 1
    (ValueError, lambda: BlocksCacheKey(-1)),  # mended: 3.2 row 4
    (ValueError, lambda: BlocksCacheKey(2**64)),
    (TypeError, lambda: CacheKey(None, 1)),
    (ValueError, lambda: CacheKey(-1, 1)),
    (INVALID, lambda: CacheKey(1)),
    (INVALID, lambda: CacheKey(1, 2, 3, 4, 5)),
    (TypeError, lambda: CacheKeyByIdAndIndex(1, None)),  # type: ignore[arg-type]
    (ValueError, lambda: CacheKeyByIdAndIndex(1, 2**63)),
    (ValueError, lambda: CacheKeyByIdAndIndex(1, 1, -1)),
]


@pytest.mark.parametrize(("expected", "make"), KEY_ERRORS)
def test_bad_keys_are_refused(expected: Any, make: Callable[[], object]) -> None:
    check_raises(expected, make)


def test_keys_with_equal_numbers_are_equal() -> None:
    assert BlocksCacheKey(1, 2) == BlocksCacheKey(cluster_id=1, model_id=2)
    assert len({BlocksCacheKey(1, 2), BlocksCacheKey(1, 2), BlocksCacheKey(1, 3)}) == 2
    assert CacheKey(1, 2) == CacheKey(1, 2, 0, 2**64 - 1) != CacheKey(1, 2, 3)
    assert repr(CacheKeyByIdAndIndex(1, 2)) == "CacheKeyByIdAndIndex(cluster_id=1, cache_id=2, batch_index=0)"


# CacheDesc and Cache (2.5).

DESC_ERRORS: list[tuple[Any, Callable[[], object]]] = [
    (TypeError, lambda: CacheDesc("2", [1], DataType.DT_INT8)),  # type: ignore[arg-type]
    (TypeError, lambda: CacheDesc(True, [1], DataType.DT_INT8)),
    (ValueError, lambda: CacheDesc(-1, [1], DataType.DT_INT8)),
    (ValueError, lambda: CacheDesc(2**32, [1], DataType.DT_INT8)),
    (TypeError, lambda: CacheDesc(1, None, DataType.DT_INT8)),  # type: ignore[arg-type]
    (TypeError, lambda: CacheDesc(1, [1.0], DataType.DT_INT8)),  # type: ignore[list-item]
    (INVALID, lambda: CacheDesc(1, [], DataType.DT_INT8)),
    (ValueError, lambda: CacheDesc(1, [2**63], DataType.DT_INT8)),
    (TypeError, lambda: CacheDesc(1, [1], 2)),  # type: ignore[arg-type]
    (TypeError, lambda: CacheDesc(1, [1], None)),  # type: ignore[arg-type]
    (TypeError, lambda: CacheDesc(1, [1], DataType.DT_INT8, 1)),  # type: ignore[arg-type]
    (INVALID, lambda: CacheDesc(1, [1], DataType.DT_INT8, batch_dim_index=1)),
    (INVALID, lambda: CacheDesc(1, [1], DataType.DT_INT8, batch_dim_index=-1)),
    (TypeError, lambda: CacheDesc(1, [1], DataType.DT_INT8, batch_dim_index=None)),  # type: ignore[arg-type]
    (INVALID, lambda: CacheDesc(1, [1], DataType.DT_INT8, seq_len_dim_index=-2)),
    (TypeError, lambda: CacheDesc(1, [1], DataType.DT_INT8, kv_tensor_format=3)),  # type: ignore[arg-type]
    (INVALID, lambda: CacheDesc(1, [2, 0], DataType.DT_INT8).size),
    (INVALID, lambda: CacheDesc(1, [1] * 32, DataType.DT_INT8).size),
    (TypeError, lambda: CacheDesc(1, (2, 3), DataType.DT_INT8).update_dim(0, 1)),
    (INVALID, lambda: CacheDesc(1, [2, 3], DataType.DT_INT8).update_dim(2, 1)),
    (INVALID, lambda: Cache.create_cpu_cache(DESC, [1, 2])),
    (INVALID, lambda: Cache.create_cpu_cache(CacheDesc(2, [4], DataType.DT_INT8, Placement.HOST), [1])),
    (TypeError, lambda: Cache.create_cpu_cache(CacheDesc(1, [4], DataType.DT_INT8, Placement.HOST), (1,))),  # type: ignore[arg-type]
    (TypeError, lambda: Cache.create_cpu_cache(None, [1])),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("expected", "call"), DESC_ERRORS)
def test_bad_descriptions_are_refused(expected: Any, call: Callable[[], object]) -> None:
    check_raises(expected, call)


def test_cache_desc_has_the_originals_properties() -> None:
    desc = CacheDesc(
        4, [6, 2, 5], DataType.DT_BF16, seq_len_dim_index=1, batch_dim_index=2, kv_tensor_format="BNSD"
    )

    assert (desc.num_tensors, desc.shape, desc.data_type) == (4, [6, 2, 5], DataType.DT_BF16)
    assert (desc.placement, desc.batch_dim, desc.batch_size) == (Placement.DEVICE, 2, 5)
    assert (desc.seq_len_dim_index, desc.kv_tensor_format, desc.size) == (1, "BNSD", 120)
    desc.update_dim(0, 7)
    assert (desc.shape[0], desc.size) == (7, 140)


def test_create_cpu_cache_gives_a_handle_without_an_id() -> None:
    cache = Cache.create_cpu_cache(CacheDesc(2, [4], DataType.DT_INT8, Placement.HOST), [16, 32])

    assert (cache.cache_id, cache.tensor_addrs, cache.is_blocks_cache) == (-1, [16, 32], True)


# LLMClusterInfo (2.3).


def test_cluster_info_lists_little_endian_integers() -> None:
    info = LLMClusterInfo()
    info.remote_cluster_id = 2**64 - 1
    info.remote_role_type = LLMRole.PROMPT
    info.append_local_ip_info("1.2.3.4", 5)
    info.append_remote_ip_info(0x04030201, 65535)
    info.append_remote_ip_info("127.1", 1)
    info.append_remote_ip_info("::1", 1)

    assert info.remote_cluster_id == 2**64 - 1
    assert info.local_ip_info_list == [(0x04030201, 5)]
    assert info.remote_ip_info_list == [(0x04030201, 65535), (0x0100007F, 1), (1 << 120, 1)]
    assert info.remote_addresses == [("1.2.3.4", 65535), ("127.0.0.1", 1), ("::1", 1)]


CLUSTER_ERRORS: list[tuple[Any, Callable[[LLMClusterInfo], object]]] = [
    (INVALID, lambda i: i.append_local_ip_info("1.2.3", 0) or i.append_local_ip_info("nowhere", 0)),
    (INVALID, lambda i: i.append_local_ip_info("", 0)),
    (INVALID, lambda i: i.append_local_ip_info("1.2.3.4 x", 0)),
    (INVALID, lambda i: i.append_remote_ip_info("fe80::zz", 0)),
    (TypeError, lambda i: i.append_remote_ip_info(None, 0)),  # type: ignore[arg-type]
    (TypeError, lambda i: i.append_remote_ip_info(True, 0)),
    (ValueError, lambda i: i.append_remote_ip_info(2**32, 0)),
    (ValueError, lambda i: i.append_remote_ip_info("1.2.3.4", 65536)),
    (TypeError, lambda i: i.append_remote_ip_info("1.2.3.4", "1")),  # type: ignore[arg-type]
    (TypeError, lambda i: setattr(i, "remote_cluster_id", "1")),
    (ValueError, lambda i: setattr(i, "remote_cluster_id", -1)),
    (TypeError, lambda i: setattr(i, "remote_role_type", "P")),
]


@pytest.mark.parametrize(("expected", "call"), CLUSTER_ERRORS)
def test_bad_cluster_infos_are_refused(expected: Any, call: Callable[[LLMClusterInfo], object]) -> None:
    check_raises(expected, lambda: call(LLMClusterInfo()))


@pytest.mark.parametrize(
    ("text", "found"),
    [("10.0.0.4:26000", ("10.0.0.4", 26000)), ("[::1]:0", ("::1", 0)), ("[FE80::1]:9", ("fe80::1", 9))],
)
def test_endpoints_are_read(text: str, found: tuple[str, int]) -> None:
    assert parse_endpoint("listen_ip_info", text) == found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.0.0.4", INVALID), (":26000", INVALID), ("::1:26000", INVALID), ("", INVALID),
        ("nowhere:1", INVALID),
        ("10.0.0.4:x", ValueError), ("10.0.0.4:", ValueError), ("10.0.0.4:65536", ValueError),
        ('{"a":1}:{', INVALID), ("{a", INVALID), (26000, TypeError),
    ],
)  # fmt: skip
def test_bad_endpoints_are_refused(text: Any, expected: Any) -> None:
    check_raises(expected, lambda: parse_endpoint("listen_ip_info", text))


# LLMConfig (2.2).

OPTIONS: list[tuple[str, Any, dict[str, str]]] = [
    ("device_id", 3, {"ge.exec.deviceId": "3", "ge.session_device_id": "3"}),
    ("device_id", [3, 4], {"ge.exec.deviceId": "3;4", "ge.session_device_id": "3"}),
    ("device_id", (3,), {"ge.exec.deviceId": "3", "ge.session_device_id": "3"}),
    ("sync_kv_timeout", 5, {"llm.SyncKvCacheWaitTime": "5"}),
    ("sync_kv_timeout", "50", {"llm.SyncKvCacheWaitTime": "50"}),
    ("listen_ip_info", "1.2.3.4:5", {"llm.listenIpInfo": "1.2.3.4:5"}),
    ("listen_ip_info", "", {}),
    ("enable_cache_manager", True, {"llm.EnableCacheManager": "1"}),
    ("enable_cache_manager", False, {"llm.EnableCacheManager": "0"}),
    ("enable_remote_cache_accessible", True, {"llm.EnableRemoteCacheAccessible": "1"}),
    ("mem_pool_cfg", '{"memory_size": 1}', {"llm.MemPoolConfig": '{"memory_size": 1}'}),
    ("mem_pool_cfg", "", {}),
    ("host_mem_pool_cfg", "{}", {"llm.HostMemPoolConfig": "{}"}),
    ("rdma_traffic_class", 132, {"llm.RdmaTrafficClass": "132"}),
    ("rdma_service_level", 4, {"llm.RdmaServiceLevel": "4"}),
    ("local_comm_res", "", {"llm.LocalCommRes": ""}),
    ("local_comm_res", '{"version": "1.3"}', {"llm.LocalCommRes": '{"version": "1.3"}'}),
    ("link_total_time", 2**32 - 1, {"llm.LinkTotalTime": "4294967295"}),
    ("link_retry_count", 100, {"llm.LinkRetryCount": "100"}),
    ("transfer_backend", "", {"llm.TransferBackend": ""}),
    ("transfer_backend", "hixl", {"llm.TransferBackend": "hixl"}),
    ("global_resource_config", "{}", {"llm.GlobalResourceConfig": "{}"}),
    ("deploy_res_path", "/x", {"llm.deployResPath": "/x"}),
    ("enable_switch_role", True, {"llm.EnableSwitchRole": "1"}),
    ("enable_switch_role", False, {}),
    ("cluster_info", '{"listen_ip_info": [{"ip": "1.2.3.4", "port": 5}]}',
     {"llm.ClusterInfo": '{"listen_ip_info": [{"ip": 67305985, "port": 5}]}'}),
    ("buf_pool_cfg", '{"buf_cfg": [{"total_size": 2097152, "blk_size": 256, "max_buf_size": 256}]}',
     {"llm.BufPoolCfg": '{"buf_cfg": [{"total_size": 2097152, "blk_size": 256, "max_buf_size": 256}]}'}),
    ("output_max_size", 9, {"llm.OutputMaxSize": "9"}),
    ("ge_options", {"a": "b"}, {"a": "b"}),
    ("keep_alive_ms", 500, {"torch_llm_datadist.KeepAliveMs": "500"}),
    ("max_in_flight", 8, {"torch_llm_datadist.MaxInFlight": "8"}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value", "emitted"), OPTIONS)
def test_options_are_emitted_under_the_originals_keys(name: str, value: Any, emitted: dict[str, str]) -> None:
    config = LLMConfig()
    setattr(config, name, value)

    assert getattr(config, name) == value
    assert config.generate_options() == {**emitted, "llm.MemoryUtilization": "0.95"}


def test_option_defaults_are_the_originals() -> None:
    config = LlmConfig()

    assert config.generate_options() == {"llm.MemoryUtilization": "0.95"}
    assert (config.device_id, config.sync_kv_timeout, config.output_max_size) == (None, None, None)
    assert (config.rdma_traffic_class, config.rdma_service_level) == (None, None)
    assert (
        config.enable_cache_manager
        is config.enable_remote_cache_accessible
        is config.enable_switch_role
        is False
    )
    assert (config.link_total_time, config.link_retry_count, config.mem_utilization) == (0, 1, 0.95)
    assert (
        config.listen_ip_info == config.local_comm_res == config.transfer_backend == config.mem_pool_cfg == ""
    )
    assert (config.keep_alive_ms, config.max_in_flight) == (3000, 256)


def test_named_options_win_over_ge_options() -> None:
    config = LLMConfig()
    config.ge_options = {"llm.listenIpInfo": "x", "other": "y"}
    config.listen_ip_info = "1.2.3.4:5"

    assert config.gen_options()["llm.listenIpInfo"] == "1.2.3.4:5"
    assert config.options["other"] == "y"


def test_options_are_one_object_without_what_was_unset() -> None:
    config = LLMConfig()
    config.listen_ip_info = "1.2.3.4:5"
    options = config.generate_options()
    options["added.by.caller"] = "1"

    config.listen_ip_info = None  # type: ignore[assignment]

    assert config.options is options
    assert "llm.listenIpInfo" not in config.generate_options()  # mended: the original keeps it
    assert options["added.by.caller"] == "1"


OPTION_ERRORS: list[tuple[str, Any, Any]] = [
    ("device_id", -1, INVALID), ("device_id", 2**31, ValueError), ("device_id", "0", TypeError),
    ("device_id", True, TypeError), ("device_id", [], INVALID), ("device_id", [0, "1"], TypeError),
    ("sync_kv_timeout", 0, INVALID), ("sync_kv_timeout", -1, INVALID), ("sync_kv_timeout", "", INVALID),
    ("sync_kv_timeout", "-1", INVALID), ("sync_kv_timeout", "1.5", INVALID),
    ("sync_kv_timeout", "0", INVALID),
    ("sync_kv_timeout", 2**31, ValueError), ("sync_kv_timeout", 1.0, TypeError),
    ("sync_kv_timeout", True, TypeError),
    ("listen_ip_info", 5, TypeError), ("enable_cache_manager", 1, TypeError),
    ("enable_remote_cache_accessible", "1", TypeError), ("enable_switch_role", 1, TypeError),
    ("mem_pool_cfg", {}, TypeError), ("mem_pool_cfg", "{", INVALID), ("host_mem_pool_cfg", "[]", INVALID),
    ("rdma_traffic_class", -1, ValueError), ("rdma_traffic_class", 2**32, ValueError),
    ("rdma_service_level", "4", TypeError), ("link_total_time", -1, INVALID),
    ("link_total_time", 2**32, INVALID),
    ("link_total_time", True, TypeError), ("link_retry_count", 0, INVALID),
    ("link_retry_count", 101, INVALID),
    ("transfer_backend", 1, TypeError), ("mem_utilization", 1, TypeError), ("mem_utilization", 1.1, INVALID),
    ("ge_options", {"a": 1}, TypeError), ("ge_options", [], TypeError), ("cluster_info", "{x", INVALID),
    ("buf_pool_cfg", '{"buf_cfg": [{"total_size": 1}]}', INVALID),
    ("buf_pool_cfg", '{"buf_cfg": [{"total_size": 2097152, "blk_size": 3, "max_buf_size": 8}]}', INVALID),
    ("output_max_size", "1", TypeError), ("keep_alive_ms", 0, INVALID), ("max_in_flight", -1, INVALID),
    ("max_inflight", 1, AttributeError),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value", "expected"), OPTION_ERRORS)
def test_bad_options_are_refused(name: str, value: Any, expected: Any) -> None:
    check_raises(expected, lambda: setattr(LLMConfig(), name, value))


# The dictionary given to init (2.4).

ON = {"llm.EnableCacheManager": "1"}
INIT_ERRORS: list[tuple[Any, Any]] = [
    (None, TypeError), ([], TypeError), ({}, INVALID),
    ({"llm.EnableCacheManager": 1}, TypeError),  # mended: the original takes it for "off"
    ({"llm.EnableCacheManager": "0"}, INVALID),
    ({"llm.LocalCommRes": "", "llm.EnableCacheManager": "0"}, INVALID),
    ({**ON, "ge.flowGraphMemMaxSize": 5}, TypeError), ({**ON, "ge.flowGraphMemMaxSize": "1;2"}, INVALID),
    ({**ON, "ge.exec.deviceId": "0;1"}, INVALID), ({**ON, "ge.exec.deviceId": "x"}, INVALID),
    ({**ON, "llm.listenIpInfo": "26000"}, INVALID), ({**ON, "llm.listenIpInfo": "1.2.3.4:x"}, ValueError),
    ({**ON, "llm.SyncKvCacheWaitTime": "0"}, INVALID),
    ({**ON, "llm.TransferBackend": "hixl"}, NotImplementedError),
    ({**ON, "llm.MemPoolConfig": '{"memory_size": 1}'}, NotImplementedError),
]  # fmt: skip


@pytest.mark.parametrize(("options", "expected"), INIT_ERRORS)
def test_bad_init_options_are_refused(options: Any, expected: Any) -> None:
    check_raises(expected, lambda: read_options(options))


def test_init_options_have_the_originals_defaults() -> None:
    options = read_options(ON)

    assert (options.device, options.listen, options.remote_accessible) == (0, None, False)
    assert (options.sync_kv_timeout_ms, options.needs_local_ip) == (1000, True)


@pytest.mark.parametrize("local_comm_res", ["", '{"version": "1.3"}'])
def test_local_comm_res_turns_cache_manager_and_remote_access_on(local_comm_res: str) -> None:
    options = read_options({"llm.LocalCommRes": local_comm_res})
    explicitly_off = read_options(
        {"llm.LocalCommRes": local_comm_res, "llm.EnableRemoteCacheAccessible": "0"}
    )

    assert options.remote_accessible
    assert options.needs_local_ip == (local_comm_res == "")
    assert not explicitly_off.remote_accessible


def test_methods_to_come_name_themselves() -> None:
    manager = CacheManagerToCome()
    for name, method in inspect.getmembers(manager, inspect.ismethod):
        arguments = [None for p in inspect.signature(method).parameters.values() if p.default is p.empty]
        with pytest.raises(NotImplementedError, match=rf"CacheManager\.{name} is not there yet; "):
            method(*arguments)
