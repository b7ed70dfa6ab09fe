"""The tables of 2.3 to 2.6, row by row: each names the cases that show it, and the cases are there.

A case is named by its file and either the name of a test or the id of one of its parameter sets, which says
its source. Rows of which the original is not followed name the case that shows the deviation.
"""

from __future__ import annotations

from pathlib import Path

import pytest

TESTS = Path(__file__).parent.parent

CLUSTER_INFO = "conformance/test_cluster_info.py"
CLUSTER_CALLS = "conformance/test_cluster_calls.py"
DATADIST = "conformance/test_datadist.py"
DESCRIPTORS = "conformance/test_descriptors.py"
REGISTRATION = "conformance/test_registration.py"
LIFE = "test_api_life.py"
TWO_SIDED = "test_two_sided_links.py"
ALLOCATED = "test_allocation_checks.py"
KEYS = "test_cache_keys_lifetime.py"
BLOCKS = "test_api_cache_manager.py"
ENTRIES = "test_entry_checks.py"
COPIES = "test_local_copies.py"

ROWS: dict[str, list[tuple[str, str]]] = {
    "2.3 remote_cluster_id": [
        (CLUSTER_INFO, "2.3 setattr(i, 'remote_cluster_id', -1)"),
        (CLUSTER_INFO, "2.3 setattr(i, 'remote_cluster_id', '1')"),
        (CLUSTER_CALLS, "2.3 remote_cluster_id is not set"),
    ],
    "2.3 remote_role_type": [(CLUSTER_INFO, "2.3 setattr(i, 'remote_role_type', 'P')")],
    "2.3 append_local_ip_info": [
        (CLUSTER_INFO, "2.3 append_local_ip_info('1.2.3', 0) or append_local_ip_info('nowhere', 0)"),
        (CLUSTER_CALLS, "2.4 no local address, and it is needed"),
    ],
    "2.3 append_remote_ip_info": [
        (CLUSTER_INFO, "2.3 append_remote_ip_info('1.2.3.4', 65536)"),
        (CLUSTER_CALLS, "test_two_addresses_of_one_server_are_a_status"),
    ],
    "2.3 local_ip_info_list, remote_ip_info_list": [
        (CLUSTER_CALLS, "test_addresses_are_read_back_as_little_endian_numbers")
    ],
    "2.4 LLMDataDist(role)": [(LIFE, "2.4 role is an int"), (LIFE, "2.4 role is None (mended)")],
    "2.4 LLMDataDist(cluster_id)": [
        (LIFE, "2.4 cluster_id is negative"),
        (LIFE, "2.4 cluster_id is beyond uint64"),
        (LIFE, "2.4 cluster_id is a str"),
    ],
    "2.4 link_clusters, unlink_clusters: clusters": [
        (CLUSTER_CALLS, "2.4 clusters = None"),
        (CLUSTER_CALLS, "2.4 clusters is a single one"),
        (CLUSTER_CALLS, "2.4 clusters holds None"),
        (CLUSTER_CALLS, "2.4 clusters is a str"),
        (CLUSTER_CALLS, "test_no_clusters_are_a_status"),
    ],
    "2.4 link_clusters, unlink_clusters: timeout": [
        (CLUSTER_CALLS, "2.4 timeout = None"),
        (CLUSTER_CALLS, "2.4 timeout = 1.5"),
        (CLUSTER_CALLS, "2.4 timeout = 2**31"),
        (CLUSTER_CALLS, "2.4 timeout = -1"),
        (CLUSTER_CALLS, "3.2 row 18 timeout = 0"),
    ],
    "2.4 unlink_clusters: force": [
        (CLUSTER_CALLS, "2.4 force = 1"),
        (CLUSTER_CALLS, "2.4 force = None (mended)"),
        (CLUSTER_CALLS, "test_unlinking_what_is_not_linked_is_a_success_with_and_without_an_address"),
    ],
    "2.4 link: comm_name": [
        (TWO_SIDED, "2.4 comm_name = None"),
        (TWO_SIDED, "2.4 comm_name = 1"),
        (TWO_SIDED, "2.4 comm_name empty"),
        (TWO_SIDED, "2.4 comm_name of 128 characters"),
    ],
    "2.4 link: cluster_rank_info": [
        (TWO_SIDED, "2.4 cluster_rank_info = None (mended)"),
        (TWO_SIDED, "2.4 cluster_rank_info = []"),
        (TWO_SIDED, "2.4 cluster_id is negative"),
        (TWO_SIDED, "2.4 rank beyond uint32"),
        (TWO_SIDED, "2.4 one member"),
        (TWO_SIDED, "2.4 five members"),
        (TWO_SIDED, "2.4 ranks fall"),
        (TWO_SIDED, "2.4 own cluster_id missing"),
    ],
    "2.4 link: rank_table": [(TWO_SIDED, "2.4 rank_table is a dict"), (TWO_SIDED, "2.4 rank_table = None")],
    "2.4 unlink, query_register_mem_status: comm_id": [
        (DATADIST, "2.4 unknown"),
        (DATADIST, "2.4 None"),
        (DATADIST, "2.4 negative"),
        (DATADIST, "2.4 beyond uint64"),
    ],
    "2.4 switch_role": [
        ("test_switch_role.py", "2.4 role is an int"),
        ("test_switch_role.py", "2.4 role = None (mended)"),
        ("test_switch_role.py", "2.4 options are a list"),
    ],
    "2.4 properties before init": [(LIFE, "test_calls_before_init_are_runtime_errors")],
    "2.5 CacheDesc: num_tensors": [
        (DESCRIPTORS, "2.5 CacheDesc('2', [1], DT_INT8)"),
        (DESCRIPTORS, "2.5 CacheDesc(-1, [1], DT_INT8)"),
        (DESCRIPTORS, "2.5 CacheDesc(2**32, [1], DT_INT8)"),
    ],
    "2.5 CacheDesc: shape": [
        (DESCRIPTORS, "2.5 CacheDesc(1, None, DT_INT8)"),
        (DESCRIPTORS, "2.5 CacheDesc(1, [1.0], DT_INT8)"),
        (DESCRIPTORS, "2.5 CacheDesc(1, [], DT_INT8)"),
        (DESCRIPTORS, "2.5 CacheDesc(1, [2**63], DT_INT8)"),
        (DESCRIPTORS, "2.5 CacheDesc(1, [2, 0], DT_INT8).size"),
    ],
    "2.5 CacheDesc: data_type": [
        (DESCRIPTORS, "2.5 CacheDesc(1, [1], 2)"),
        (DESCRIPTORS, "2.5 CacheDesc(1, [1], None)"),
    ],
    "2.5 CacheDesc: placement": [(DESCRIPTORS, "2.5 CacheDesc(1, [1], DT_INT8, 1)")],
    "2.5 CacheDesc: batch_dim_index": [
        (DESCRIPTORS, "2.5 CacheDesc(1, [1], DT_INT8, batch_dim_index=1)"),
        (DESCRIPTORS, "2.5 CacheDesc(1, [1], DT_INT8, batch_dim_index=None)"),
    ],
    "2.5 CacheDesc: seq_len_dim_index": [
        (DESCRIPTORS, "2.5 CacheDesc(1, [1], DT_INT8, seq_len_dim_index=-2)"),
        (DESCRIPTORS, "2.5 CacheDesc(1, [1], DT_INT8, seq_len_dim_index=None)"),
    ],
    "2.5 CacheDesc: kv_tensor_format": [
        (DESCRIPTORS, "2.5 CacheDesc(1, [1], DT_INT8, kv_tensor_format=3)")
    ],
    "2.5 TransferConfig: dst_cluster_id": [
        (DESCRIPTORS, "2.5 dst_cluster_id = None"),
        (DESCRIPTORS, "2.5 dst_cluster_id = 2**64"),
    ],
    "2.5 TransferConfig: dst_addrs": [
        (DESCRIPTORS, "2.5 dst_addrs = None"),
        (DESCRIPTORS, "2.5 dst_addrs = [-1]"),
        ("conformance/test_transfer_cache_async.py", "2.7.7 "),
    ],
    "2.5 TransferConfig: src_layer_range": [
        (DESCRIPTORS, "2.5 TransferConfig: src_layer_range = [0]"),
        (DESCRIPTORS, "2.5 TransferConfig: step 2"),
        (DESCRIPTORS, "2.5 TransferConfig: empty"),
        (DESCRIPTORS, "2.5 TransferConfig: negative"),
    ],
    "2.5 TransferConfig: src_batch_index": [
        (DESCRIPTORS, "2.5 TransferConfig: src_batch_index = -1"),
        (DESCRIPTORS, "2.5 TransferConfig: src_batch_index = None"),
    ],
    "2.5 TransferWithCacheKeyConfig: cache_key": [
        (DESCRIPTORS, "2.5 cache_key = None"),
        (DESCRIPTORS, "2.5 cache_key = CacheKey"),
    ],
    "2.5 TransferWithCacheKeyConfig: src_layer_range": [
        (DESCRIPTORS, "3.2 row 12 its own defaults"),
        (DESCRIPTORS, "2.5 src_layer_range = [0]"),
        (DESCRIPTORS, "seed 000 step 2"),
        (DESCRIPTORS, "2.5 src empty"),
    ],
    "2.5 TransferWithCacheKeyConfig: dst_layer_range": [
        (DESCRIPTORS, "2.5 dst_layer_range missing"),
        (DESCRIPTORS, "2.5 dst step 2"),
        (DESCRIPTORS, "2.5 dst negative"),
        (DESCRIPTORS, "seed 000 sizes differ"),
    ],
    "2.5 TransferWithCacheKeyConfig: src_batch_index": [
        (DESCRIPTORS, "seed 000 src_batch_index with a BlocksCacheKey"),
        (DESCRIPTORS, "2.5 src_batch_index = -1"),
        (DESCRIPTORS, "2.5 src_batch_index = None"),
    ],
    "2.6 allocate_*: no pool configured": [(ALLOCATED, "test_without_a_pool_nothing_is_allocated")],
    "2.6 allocate_*: num_tensors == 0": [
        (ALLOCATED, "2.6 no tensors"),
        (ALLOCATED, "2.6 blocks: no tensors"),
    ],
    "2.6 allocate_*: cache_desc None, keys None": [
        (ALLOCATED, "2.6 desc is None (mended)"),
        (ALLOCATED, "2.6 keys are None"),
        (ALLOCATED, "2.6 a single key"),
    ],
    "2.6 allocate_*: wrong types": [
        (ALLOCATED, "2.6 a key of another class"),
        (ALLOCATED, "2.6 blocks: a CacheKey"),
    ],
    "2.6 allocate_*: invalid shape": [(ALLOCATED, "2.6 a dimension is 0"), (ALLOCATED, "2.6 32 dimensions")],
    "2.6 allocate_*: pool exhausted": [
        (ALLOCATED, "2.6 pool exhausted"),
        (ALLOCATED, "2.6 blocks: pool exhausted"),
        (ALLOCATED, "test_tensors_that_were_taken_before_the_pool_ran_out_go_back"),
    ],
    "2.6 allocate_cache: more keys than shape[0]": [(ALLOCATED, "2.6 more keys than entries")],
    "2.6 allocate_cache: a key that is bound, or listed twice": [
        (ALLOCATED, "2.6 a key twice"),
        (KEYS, "test_a_key_that_is_bound_cannot_be_allocated_again_before_it_is_free"),
    ],
    "2.6 register_*: addrs tuple or None": [
        (REGISTRATION, "2.6 addrs is a tuple"),
        (REGISTRATION, "2.6 addrs = None"),
    ],
    "2.6 register_*: element not int": [(REGISTRATION, "2.6 addrs = ['a', 'b']")],
    "2.6 register_*: empty": [(REGISTRATION, "2.6 addrs = []")],
    "2.6 register_*: len != num_tensors": [(REGISTRATION, "2.6 one address for two tensors")],
    "2.6 register_*: an address 0": [(REGISTRATION, "2.6 an address 0")],
    "2.6 register_*: negative address": [(REGISTRATION, "test_a_negative_address_is_refused")],
    "2.6 register_*: cache_desc None": [(REGISTRATION, "2.6 cache_desc = None (mended)")],
    "2.6 register_*: remote_accessible not bool or None": [
        (REGISTRATION, "2.6 remote_accessible = 1: contiguous"),
        (REGISTRATION, "2.6 remote_accessible = 1: blocks"),
    ],
    "2.6 register_*: remote_accessible=True after link()": [
        (TWO_SIDED, "test_a_cache_registered_after_link_is_reachable")
    ],
    "2.6 register_*: transport refuses memory": [
        (REGISTRATION, "2.6 transport refuses memory: another allocator's"),
        (REGISTRATION, "2.6 transport refuses memory: no key for it"),
        ("test_hixl.py", "test_memory_that_the_engine_of_a_link_refuses_is_not_registered"),
    ],
    "2.6 pull_cache: cache_key": [
        (ENTRIES, "2.6 key is None"),
        (ENTRIES, "2.6 key is a BlocksCacheKey"),
        (ENTRIES, "2.5 both ids"),
        (ENTRIES, "2.5 neither id"),
        (ENTRIES, "test_with_remote_access_pull_cache_takes_ids_only"),
    ],
    "2.6 pull_cache: cache": [(ENTRIES, "2.6 cache is None"), (ENTRIES, "2.6 blocks cache")],
    "2.6 pull_cache: batch_index": [
        (ENTRIES, "2.6 batch_index past the end"),
        (ENTRIES, "2.6 batch_index -1"),
    ],
    "2.6 pull_cache: size": [
        (ENTRIES, "2.6 size 0"),
        (ENTRIES, "2.6 size -2"),
        (ENTRIES, "2.6 size larger than an entry"),
        (ENTRIES, "2.6 size 2**63"),
        ("test_entry_transfers.py", "test_pull_cache_moves_the_first_bytes_of_one_entry"),
    ],
    "2.6 pull_cache: layer ranges": [
        (ENTRIES, "3.2 row 5 empty range (mended)"),
        (ENTRIES, "3.2 row 5 step 2"),
        (ENTRIES, "2.6 ranges of other lengths"),
    ],
    "2.6 pull_cache: tensor_num_per_layer": [
        (ENTRIES, "2.6 tensor_num_per_layer 0"),
        (ENTRIES, "2.6 tensor_num_per_layer -1"),
        (ENTRIES, "2.6 tensor_num_per_layer None"),
        (ENTRIES, "2.6 tensor_num_per_layer a float"),
        (ENTRIES, "2.6 tensor_num_per_layer does not divide, with a range"),
    ],
    "2.6 pull_cache: own cluster, no link, unknown id": [
        (ENTRIES, "2.6 own cluster"),
        (ENTRIES, "2.6 no link"),
        (ENTRIES, "2.6 unknown local cache"),
        (ENTRIES, "2.6 no such cache there"),
        (ENTRIES, "3.2 row 9 unknown keyword (mended)"),
    ],
    "2.6 pull_blocks: BlocksCacheKey, src_blocks": [
        (BLOCKS, "src empty"),
        (BLOCKS, "dst empty"),
        (BLOCKS, "lengths differ"),
        (BLOCKS, "src too large"),
        (BLOCKS, "dst is None"),
        (BLOCKS, "src holds a numpy int"),
        (BLOCKS, "dst negative"),
    ],
    "2.6 pull_blocks: the key of an entry, no src_blocks": [
        (ENTRIES, "2.6 src_blocks not empty"),
        (ENTRIES, "2.6 dst_blocks empty"),
        (ENTRIES, "2.6 contiguous destination"),
        ("test_entry_transfers.py", "test_pull_blocks_cuts_an_entry_into_blocks"),
    ],
    "2.6 push_cache: dst_cache_key": [
        (ENTRIES, "seed 004 key is None"),
        (ENTRIES, "seed 004 key is a BlocksCacheKey"),
        (ENTRIES, "seed 004 key is a CacheKey"),
    ],
    "2.6 push_cache: src_cache": [(ENTRIES, "seed 004 cache is None"), (ENTRIES, "2.6 blocks cache")],
    "2.6 push_cache: src_batch_index": [
        (ENTRIES, "2.6 src_batch_index past the end"),
        (ENTRIES, "2.6 src_batch_index -1"),
    ],
    "2.6 push_cache: layer ranges": [
        (ENTRIES, "2.6 only one range"),
        (ENTRIES, "2.8 row 11 destination range past the end"),
        (ENTRIES, "3.2 row 6 step 2"),
        (ENTRIES, "3.2 row 6 empty"),
        (ENTRIES, "3.2 row 6 negative"),
        (ENTRIES, "3.2 row 6 list"),
    ],
    "2.6 push_cache: size": [
        (ENTRIES, "2.6 size 64"),
        (ENTRIES, "2.6 size -2**63-1"),
        (ENTRIES, "2.6 size a float"),
    ],
    "2.6 push_cache: tensor_num_per_layer": [
        (ENTRIES, "2.6 row 18 more tensors per layer than tensors (mended)"),
        (ENTRIES, "2.6 tensor_num_per_layer does not divide, with ranges"),
        (ENTRIES, "3.2 row 7 tensor_num_per_layer 0"),
    ],
    "2.6 push_blocks: dst_cache_key": [(BLOCKS, "key is None"), (BLOCKS, "key of another class")],
    "2.6 push_blocks: src_cache": [(BLOCKS, "cache is None"), (BLOCKS, "contiguous cache")],
    "2.6 push_blocks: src_blocks": [
        (BLOCKS, "src is a range"),
        (BLOCKS, "test_push_blocks_without_src_blocks_is_refused"),
    ],
    "2.6 push_blocks: dst_blocks": [
        (BLOCKS, "dst empty"),
        (BLOCKS, "lengths differ"),
        (BLOCKS, "dst too large"),
    ],
    "2.6 push_blocks: layer ranges, tensor_num_per_layer": [
        (BLOCKS, "src range step"),
        (BLOCKS, "ranges differ in length"),
        (BLOCKS, "tensor_num_per_layer 0"),
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("file", "case"),
    [pytest.param(*case, id=f"{name}: {case[1]}") for name, cases in ROWS.items() for case in cases],
)
def test_each_row_of_the_tables_has_its_cases(file: str, case: str) -> None:
    text = (TESTS / file).read_text()

    assert f"def {case}(" in text if case.startswith("test_") else f'"{case}' in text
