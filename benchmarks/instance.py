"""Instances of the benchmarks: how they are started, and linked on this host."""

from __future__ import annotations

import torch_llm_datadist as datadist


def start(cluster_id: int, device: int) -> datadist.LLMDataDist:
    """An instance that listens on a free port of its own."""
    config = datadist.LLMConfig()
    config.device_id = device
    config.enable_cache_manager = True
    config.enable_remote_cache_accessible = True
    config.listen_ip_info = "127.0.0.1:0"
    config.sync_kv_timeout = 60_000
    instance = datadist.LLMDataDist(datadist.LLMRole.MIX, cluster_id)
    instance.init(config.generate_options())
    return instance


def link(instance: datadist.LLMDataDist, remote_cluster_id: int, port: int) -> None:
    link_all(instance, {remote_cluster_id: port})


def link_all(instance: datadist.LLMDataDist, ports: dict[int, int]) -> None:
    """With the clusters that listen there, at once."""
    clusters = []
    for remote_cluster_id, port in ports.items():
        info = datadist.LLMClusterInfo()
        info.remote_cluster_id = remote_cluster_id
        info.append_local_ip_info("127.0.0.1", 0)
        info.append_remote_ip_info("127.0.0.1", port)
        clusters.append(info)
    status, _ = instance.link_clusters(clusters, timeout=60_000)
    if status != datadist.LLMStatusCode.LLM_SUCCESS:
        raise SystemExit(f"linking with {list(ports)} failed: {status.name}")
