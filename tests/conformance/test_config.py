"""2.2: LLMConfig, and 2.4: the dictionary given to init."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.conformance.case import check_raises, row
from torch_llm_datadist.config import LLMConfig, LlmConfig
from torch_llm_datadist.errors import LLMStatusCode
from torch_llm_datadist.options import read_options

INVALID = LLMStatusCode.LLM_PARAM_INVALID

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
    ("mem_utilization", 0.5, {"llm.MemoryUtilization": "0.5"}),
    ("ge_options", {"a": "b"}, {"a": "b"}),
    ("keep_alive_ms", 500, {"torch_llm_datadist.KeepAliveMs": "500"}),
    ("max_in_flight", 8, {"torch_llm_datadist.MaxInFlight": "8"}),
    ("packed_staging_bytes", 4096, {"torch_llm_datadist.PackedStagingBytes": "4096"}),
    ("streams_per_link", 4, {"torch_llm_datadist.StreamsPerLink": "4"}),
    ("stream_budget", 100, {"torch_llm_datadist.StreamBudget": "100"}),
    ("stream_idle_ms", 50, {"torch_llm_datadist.StreamIdleMs": "50"}),
    ("staging_limit", 2**40, {"torch_llm_datadist.StagingLimit": str(2**40)}),
    ("close_timeout", 100, {"torch_llm_datadist.CloseTimeoutMs": "100"}),
    ("register_timeout", 60_000, {"torch_llm_datadist.RegisterTimeoutMs": "60000"}),
    ("stream_timeout", 5000, {"torch_llm_datadist.StreamTimeoutMs": "5000"}),
    ("transport", "nixl", {"torch_llm_datadist.Transport": "nixl"}),
    ("transport", "", {}),
    ("engine_chunk_bytes", 4096, {"torch_llm_datadist.EngineChunkBytes": "4096"}),
    ("engine_chunks", 64, {"torch_llm_datadist.EngineChunks": "64"}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value", "emitted"), OPTIONS, ids=[f"2.2 {o[0]} = {o[1]!r}" for o in OPTIONS]
)
def test_options_are_emitted_under_the_originals_keys(name: str, value: Any, emitted: dict[str, str]) -> None:
    config = LLMConfig()
    setattr(config, name, value)

    assert getattr(config, name) == value
    assert config.generate_options() == {"llm.MemoryUtilization": "0.95", **emitted}


# 2.2: the table's rows.
PROPERTIES = [
    "device_id", "sync_kv_timeout", "listen_ip_info", "enable_cache_manager",
    "enable_remote_cache_accessible", "mem_pool_cfg", "host_mem_pool_cfg", "rdma_traffic_class",
    "rdma_service_level", "local_comm_res", "link_total_time", "link_retry_count",
    "transfer_backend", "global_resource_config", "ge_options", "deploy_res_path",
    "enable_switch_role", "buf_pool_cfg", "cluster_info", "output_max_size", "mem_utilization",
]  # fmt: skip


@pytest.mark.parametrize("name", PROPERTIES)
def test_each_property_is_emitted_and_refuses_what_it_is_not(name: str) -> None:
    assert name in {option[0] for option in OPTIONS}
    assert name in {option[0] for option in OPTION_ERRORS}


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
    assert (config.streams_per_link, config.stream_budget, config.stream_idle_ms, config.staging_limit) == (
        64,
        1024,
        5000,
        2**30,
    )
    assert (config.close_timeout, config.register_timeout, config.stream_timeout) == (1000, 10_000, 60_000)


def test_named_options_win_over_ge_options() -> None:
    config = LLMConfig()
    config.ge_options = {"llm.listenIpInfo": "x", "other": "y"}
    config.listen_ip_info = "1.2.3.4:5"

    assert config.gen_options()["llm.listenIpInfo"] == "1.2.3.4:5"
    assert config.options["other"] == "y"


def test_options_are_one_object_without_what_was_unset() -> None:
    """Mended: what was unset stays in the original."""
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
    ("local_comm_res", {}, TypeError), ("global_resource_config", 1, TypeError),
    ("deploy_res_path", 1, TypeError),
    ("transport", 1, TypeError), ("engine_chunk_bytes", 4095, INVALID), ("engine_chunks", 1, INVALID),
    ("engine_chunks", 65, INVALID),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value", "expected"), OPTION_ERRORS, ids=[f"2.2 {o[0]} = {o[1]!r}" for o in OPTION_ERRORS]
)
def test_bad_options_are_refused(name: str, value: Any, expected: Any) -> None:
    """Mended: the original takes misspelt names, and finds bad JSON and an empty device_id later."""
    check_raises(expected, lambda: setattr(LLMConfig(), name, value))


# The dictionary given to init (2.4).

ON = {"llm.EnableCacheManager": "1"}
LISTENS = {"llm.listenIpInfo": "127.0.0.1:26000"}
# By the steps of 2.4 in their order.
INIT_ERRORS: list[tuple[int, Any, Any]] = [
    (3, None, TypeError), (3, [], TypeError),
    (4, {**ON, "ge.flowGraphMemMaxSize": 5}, TypeError),
    (4, {**ON, "ge.flowGraphMemMaxSize": "1;2"}, INVALID),
    (5, {"llm.LocalCommRes": "", "llm.EnableCacheManager": "0"}, INVALID),
    (6, {**ON, "llm.TransferBackend": "hixl"}, INVALID),  # no address to listen at
    (6, {**ON, **LISTENS, "llm.TransferBackend": ""}, INVALID),
    (6, {**ON, **LISTENS, "llm.TransferBackend": "hccl"}, INVALID),
    (6, {**LISTENS, "llm.TransferBackend": "hixl"}, INVALID),  # no cache manager
    (6, {**ON, **LISTENS, "llm.TransferBackend": "hixl", "llm.EnableRemoteCacheAccessible": "0"}, INVALID),
    (7, {"llm.EnableCacheManager": 1}, TypeError),  # mended: the original takes it for "off"
    (8, {**ON, "llm.listenIpInfo": "26000"}, INVALID),
    (8, {**ON, "llm.listenIpInfo": "1.2.3.4:x"}, ValueError),
    (9, {**ON, "ge.exec.deviceId": "0;1"}, INVALID), (9, {**ON, "ge.exec.deviceId": "x"}, INVALID),
    (9, {**ON, "llm.SyncKvCacheWaitTime": "0"}, INVALID), (9, {**ON, "other": 1}, TypeError),
    (9, {**ON, 1: "other"}, TypeError),
]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "expected"),
    [o[1:] for o in INIT_ERRORS],
    ids=[f"2.4 init {o[0]}: {o[1]!r}" for o in INIT_ERRORS],
)
def test_bad_init_options_are_refused(options: Any, expected: Any) -> None:
    """Mended: an option that is no string is silently off in the original."""
    check_raises(expected, lambda: read_options(options))


def test_init_options_have_the_originals_defaults() -> None:
    options = read_options(ON)

    assert (options.device, options.listen, options.remote_accessible) == (0, None, False)
    assert (options.sync_kv_timeout_ms, options.needs_local_ip) == (1000, True)


@pytest.mark.parametrize("given", [{}, {"llm.EnableCacheManager": "0"}, {"llm.EnableCacheManager": "true"}])
def test_without_the_cache_manager_the_older_api_is_there(given: dict[str, str]) -> None:
    """2.4 row 7."""
    assert read_options(given).is_older_api
    assert not read_options(ON).is_older_api
    pool = read_options({**given, "ge.flowGraphMemMaxSize": "1048576"}).mem_pool
    assert pool is not None
    assert pool.memory_size == 1048576
    assert read_options({**ON, "ge.flowGraphMemMaxSize": "1048576"}).mem_pool is None


@pytest.mark.parametrize("local_comm_res", ["", '{"version": "1.3"}'])
def test_local_comm_res_turns_cache_manager_and_remote_access_on(local_comm_res: str) -> None:
    options = read_options({"llm.LocalCommRes": local_comm_res})
    explicitly_off = read_options(
        {"llm.LocalCommRes": local_comm_res, "llm.EnableRemoteCacheAccessible": "0"}
    )

    assert options.remote_accessible
    assert options.needs_local_ip == (local_comm_res == "")
    assert not explicitly_off.remote_accessible


def comm_resource(version: str, *device_ids: str) -> str:
    """4.11a: the rank table of one server, of its own device only."""
    device = [{"device_id": device_id, "device_ip": "10.0.0.1"} for device_id in device_ids]
    server = {"server_id": "10.0.0.2", "device": device}
    return json.dumps({"version": version, "status": "completed", "server_list": [server]})


COMM_RESOURCES = [
    row("4.11a local_comm_res of version 1.0", None, comm_resource("1.0", "1"), None),
    row("4.11a local_comm_res of version 1.2", None, comm_resource("1.2", "1"), None),
    row("4.11a local_comm_res of version 1.3", None, '{"version": "1.3"}', None),
    row("4.11a local_comm_res of version 1.3 with its device", None, comm_resource("1.3", "1"), None),
    row("4.11a the physical id of a device that is not all the process sees", None,
        comm_resource("1.2", "6"), "4,6"),
    row("4.11a an unknown version", INVALID, comm_resource("1.1", "1"), None),
    row("4.11a no version", INVALID, "{}", None),
    row("4.11a no server", INVALID, '{"version": "1.2"}', None),
    row("4.11a no device", INVALID, comm_resource("1.2"), None),
    row("4.11a two devices", INVALID, comm_resource("1.2", "1", "2"), None),
    row("4.11a a device_id that is no number", INVALID, comm_resource("1.2", "x"), None),
    row("4.11a another device", INVALID, comm_resource("1.0", "0"), None),
    row("4.11a another device of those that the process sees", INVALID, comm_resource("1.2", "4"), "4,6"),
    row("4.11a the device as the process counts it", INVALID, comm_resource("1.3", "1"), "4,6"),
]  # fmt: skip


@pytest.mark.parametrize(("expected", "text", "visible"), COMM_RESOURCES)
def test_local_comm_res_names_the_instances_own_device(
    monkeypatch: pytest.MonkeyPatch, expected: Any, text: str, visible: str | None
) -> None:
    """The instance has ``device_id`` 1."""
    monkeypatch.delenv("ASCEND_RT_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("ASCEND_RT_VISIBLE_DEVICES", visible)
    given = {"ge.exec.deviceId": "1", "llm.LocalCommRes": text}

    if expected is None:
        assert read_options(given).device == 1
    else:
        assert check_raises(expected, lambda: read_options(given)).startswith("init: local_comm_res: ")


WITHOUT_EFFECT = {
    "llm.LinkRetryCount": "7", "llm.deployResPath": "/x", "llm.BufPoolCfg": "{}",
    "llm.ClusterInfo": "{}", "llm.OutputMaxSize": "9", "llm.MemoryUtilization": "0.5",
}  # fmt: skip


@pytest.mark.parametrize("key", WITHOUT_EFFECT)
def test_options_of_what_is_not_here_change_nothing(key: str) -> None:
    """Mended, in its way: HCCL and the graph engine are not here, so there is nothing to set up."""
    assert read_options({**ON, key: WITHOUT_EFFECT[key]}) == read_options(ON)


def test_what_is_hixls_own_is_kept_by_its_names() -> None:
    options = read_options(
        {**ON, **LISTENS, "llm.TransferBackend": "hixl", "llm.GlobalResourceConfig": "{}",
         "llm.RdmaTrafficClass": "164", "llm.RdmaServiceLevel": "5", "llm.LocalCommRes": ""}
    )  # fmt: skip

    assert options.transport == "hixl"
    assert options.hixl_options == {
        "GlobalResourceConfig": "{}",
        "RdmaTrafficClass": "164",
        "RdmaServiceLevel": "5",
    }
