"""The tables, row by row: each names the cases that show it, and the cases are there.

Those of 2.1 and 2.2 are cases themselves (test_codes.py, test_config.py), and so are the rules of 2.8, the
points of 3.2 and the checks of 2.7 (test_index.py looks at those).

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
MAPPED_MEMORY = "test_mapped_memory.py"
LIFE = "test_api_life.py"
TWO_SIDED = "test_two_sided_links.py"
ALLOCATED = "test_allocation_checks.py"
KEYS = "test_cache_keys_lifetime.py"
BLOCKS = "test_api_cache_manager.py"
ENTRIES = "test_entry_checks.py"
COPIES = "test_local_copies.py"
ASYNC = "test_transfer_async.py"
CONCURRENT = "conformance/test_concurrency.py"
LIMITS = "conformance/test_limits.py"
LOST = "test_api_lost_peers.py"
OLDER = "call_sequences/test_older_api.py"
CONFIG = "conformance/test_config.py"
COMBINATIONS = "conformance/test_combinations.py"
SURPRISES = "conformance/test_surprises.py"
HANDSHAKE = "test_link_handshake.py"
LINK_ENDS = "test_link_ends.py"
LINK_CACHES = "test_link_caches.py"
SEED_000 = "test_seed_transfer_with_cache_key_config.py"
SEED_001 = "test_seed_transfer_cache_async.py"
TRANSFERS = "test_entry_transfers.py"
POOL = "test_memory_pool.py"

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
        (MAPPED_MEMORY, "2.6 transport refuses memory: another allocator's"),
        (MAPPED_MEMORY, "2.6 transport refuses memory: no key for it"),
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
        (TRANSFERS, "test_pull_cache_moves_the_first_bytes_of_one_entry"),
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
        (TRANSFERS, "test_pull_blocks_cuts_an_entry_into_blocks"),
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
    "2.5 Cache.create_cpu_cache": [
        (DESCRIPTORS, "test_create_cpu_cache_gives_a_handle_without_an_id"),
        (DESCRIPTORS, "2.5 Cache.create_cpu_cache(DESC, [1, 2])"),
    ],
    "2.5 MemInfo": [(DESCRIPTORS, "2.5 MemInfo")],
    "2.6 deallocate_*": [
        (ALLOCATED, "test_deallocating_is_idempotent_and_strict_about_kinds"),
        (SURPRISES, "3.2 row 21 deallocate_cache twice"),
    ],
    "2.6 unregister_cache": [
        (BLOCKS, "test_unregister_cache_refuses_what_is_no_id"),
        (BLOCKS, "test_unregister_cache_of_an_unknown_id_is_no_error"),
        (BLOCKS, "test_an_unregistered_cache_is_not_found_at_either_end"),
    ],
    "2.6 remove_cache_key": [(KEYS, "test_keys_of_a_registered_cache_stay")],
    "2.6 copy_cache": [
        (COPIES, "2.6 dst is None (mended)"),
        (COPIES, "2.6 blocks cache"),
        (COPIES, "2.6 unknown id"),
        (COPIES, "2.6 other number of tensors"),
        (COPIES, "2.6 size past the end"),
        (COPIES, "2.6 offset -1"),
        (COPIES, "2.6 req_id -1"),
        (COPIES, "test_copy_cache_copies_a_part_of_an_entry"),
    ],
    "2.6 copy_blocks": [
        (COPIES, "2.6 contiguous cache"),
        (COPIES, "2.6 value is an int"),
        (COPIES, "2.6 source past the end"),
        (COPIES, "test_copy_blocks_copies_each_source_to_its_destinations"),
    ],
    "2.6 swap_blocks": [
        (COPIES, "2.6 both on the device"),
        (COPIES, "2.6 block sizes differ"),
        (COPIES, "test_swap_blocks_copies_one_way_between_host_and_device"),
    ],
    "2.6 remap_registered_memory": [
        (ENTRIES, "test_remap_registered_memory_checks_its_arguments_and_is_reserved"),
        (ENTRIES, "test_remap_registered_memory_needs_a_link"),
    ],
    # 2.8a: what blocks, for whom, and what the other end does.
    "2.8a init, finalize": [
        (LIFE, "test_finalize_tells_the_peers_and_init_starts_anew"),
        (CONCURRENT, "test_finalize_during_a_blocking_call_answers_it"),
        (HANDSHAKE, "test_listen_on_a_taken_port_names_the_address"),
        (ALLOCATED, "test_a_pool_that_does_not_fit_fails_init_which_may_be_tried_again"),
    ],
    "2.8a link_clusters": [
        (HANDSHAKE, "test_link_reports_link_failed_when_nobody_listens"),
        (HANDSHAKE, "test_link_twice_is_already_linked_from_either_end"),
        (HANDSHAKE, "test_link_to_several_servers_runs_at_the_same_time"),
        (LOST, "test_linking_to_a_frozen_server_ends_at_the_timeout"),
    ],
    "2.8a unlink_clusters": [
        (LINK_ENDS, "test_unlink_waits_for_running_transfers_of_either_end"),
        (LINK_ENDS, "test_unlink_that_is_not_answered_fails_and_leaves_the_link"),
        (LINK_ENDS, "test_unlink_with_force_closes_this_end_and_the_peer_notices"),
    ],
    "2.8a link": [
        (TWO_SIDED, "test_link_is_preparing_until_the_other_member_calls_it"),
        (TWO_SIDED, "test_link_fails_when_its_time_is_over"),
    ],
    "2.8a unlink": [
        (TWO_SIDED, "test_unlink_ends_a_link_that_is_still_being_made"),
        (TWO_SIDED, "test_unlink_by_one_member_is_a_failed_link_at_the_other"),
    ],
    "2.8a register_*, unregister_cache": [
        (MAPPED_MEMORY, "2.6 transport refuses memory: no key for it"),
        (LINK_CACHES, "test_a_cache_registered_after_linking_is_announced"),
    ],
    "2.8a allocate_*, deallocate_*, remove_cache_key": [
        ("test_allocated_caches.py", "test_memory_is_not_handed_out_again_while_a_peer_still_pulls_from_it"),
        (KEYS, "test_a_pull_that_succeeded_removes_the_key_it_used"),
    ],
    "2.8a pull_cache, pull_blocks": [
        (TRANSFERS, "test_a_pull_that_takes_longer_than_sync_kv_timeout_raises_and_the_link_goes_on"),
        (CONCURRENT, "test_a_pull_ends_while_one_on_another_link_stands_still"),
    ],
    "2.8a push_cache, push_blocks": [
        ("test_ordering.py", "test_blocking_push_blocks_waits_for_the_current_stream"),
        (CONCURRENT, "test_a_push_ends_while_one_to_another_peer_stands_still"),
    ],
    "2.8a transfer_cache_async": [
        (ASYNC, "test_a_layer_leaves_when_it_is_ready_and_no_earlier"),
        (CONCURRENT, "test_pulls_and_a_transfer_share_a_link"),
    ],
    "2.8a copy_*, swap_blocks": [(COPIES, "test_copy_cache_within_one_cache")],
    "2.8a switch_role": [
        ("test_switch_role.py", "test_live_links_forbid_it"),
        ("test_switch_role.py", "test_the_listener_moves_to_another_port"),
    ],
    # 2.9, the older API, with the connectors that used it.
    "2.9 kv_cache_manager, is_initialized": [(OLDER, "test_connectors_of_the_older_api")],
    "2.9 roles, the two offsets, get_cache_tensors, per_device_tensor_addrs": [
        (OLDER, "test_connectors_of_the_older_api")
    ],
    "2.9 destructor": [(OLDER, "test_a_cache_of_the_older_api_lives_until_it_is_deallocated")],
    "2.9 Tensor, TensorDesc": [(OLDER, "test_tensors_of_the_older_api_are_torchs")],
    "2.9 check_link_status": [(OLDER, "test_connectors_of_the_older_api")],
    "2.9 ge.flowGraphMemMaxSize": [(CONFIG, "test_without_the_cache_manager_the_older_api_is_there")],
    "2.9 switch_role needs its option": [(OLDER, "test_older_switch_role_needs_its_option")],
    # The other tables.
    "1.2 members of a two-sided link: 2 to 4": [
        (TWO_SIDED, "test_link_joins_every_member_with_every_other_in_any_order"),
        (TWO_SIDED, "2.4 one member"),
        (TWO_SIDED, "2.4 five members"),
    ],
    "1.2 both sides may start transfers": [("test_api_links.py", "test_blocks_move_both_ways_over_one_link")],
    "1.5 CacheKey": [(KEYS, "test_placeholders_skip_an_entry"), (KEYS, "test_prefix_keys_stay")],
    "1.5 BlocksCacheKey": [
        ("test_seed_blocks_cache_key.py", "test_model_id_tells_the_caches_of_a_cluster_apart")
    ],
    "1.5 CacheKeyByIdAndIndex": [(KEYS, "test_a_pull_by_id_removes_the_key_of_that_entry")],
    "1.7 push": [(COMBINATIONS, "test_pushes_need_remote_access")],
    "1.7 transfer_cache_async": [
        (SEED_001, "test_constraint_remote_accessible_mode_takes_configs_with_keys_only"),
        (SEED_001, "test_constraint_without_it_configs_with_addresses_only"),
    ],
    "1.7 pull_cache key": [(ENTRIES, "test_with_remote_access_pull_cache_takes_ids_only")],
    "1.7 pull removes the key of an owned cache": [
        (KEYS, "test_a_pull_that_succeeded_removes_the_key_it_used"),
        (KEYS, "test_with_remote_access_pulls_remove_nothing"),
    ],
    "1.7 visibility of what comes later": [
        (LINK_CACHES, "test_a_cache_registered_after_linking_is_announced")
    ],
    "1.7 both caches are remote_accessible": [
        (BLOCKS, "test_a_cache_that_is_not_remote_accessible_is_neither_seen_nor_sent")
    ],
    "1.7 both ends have the same setting": [(LIFE, "test_remote_access_must_be_the_same_at_both_ends")],
    "3.1 wrong type, out of range, bad value": [(SURPRISES, "test_refused")],
    "3.1 before init": [(LIFE, "test_calls_before_init_are_runtime_errors")],
    "4.6 memory_size, page_shift": [
        (POOL, "test_a_pool_config_has_a_size_and_a_page_shift"),
        (POOL, "test_a_bad_pool_config_is_refused"),
    ],
    "4.11 links per instance": [(HANDSHAKE, "test_one_link_more_than_the_limit_is_a_status")],
    "4.11 registered addresses": [(LIMITS, "test_4_3_a_pull_of_more_tensors_than_fit_a_request")],
    "4.11 dims of a cache": [(REGISTRATION, "2.6 more than 31 dimensions")],
    "4.11 ids are uint64": [(LIFE, "test_any_uint64_is_a_cluster_id_and_a_model_id")],
    "4.11a rank table for link": [
        (TWO_SIDED, "4.11a rank_table is no JSON"),
        (TWO_SIDED, "test_rank_0_waits_at_host_ip_or_server_id_and_port_61000_plus_its_device"),
    ],
    "4.11a local_comm_res": [
        (CONFIG, "4.11a another device"),
        (CONFIG, "4.11a two devices"),
        (CONFIG, "4.11a local_comm_res of version 1.3"),
    ],
    # 7.1, where manual and original part ways: what is done here.
    "7.1 ranges of pushes need only be as long": [
        ("test_seed_push_blocks.py", "test_constraint_only_equal_layer_ranges_is_lifted")
    ],
    "7.1 ranges of TransferWithCacheKeyConfig are needed": [
        (SEED_000, "test_both_layer_ranges_are_required")
    ],
    "7.1 cache_key is the remote cache": [
        (SEED_000,
         "test_cache_key_is_one_of_two_classes_and_names_the_cluster_of_the_destination")
    ],
    "7.1 a key twice at allocation is refused": [(ALLOCATED, "2.6 a key twice")],
    "7.1 calls on one link do not exclude each other": [
        (CONCURRENT, "test_pulls_and_a_transfer_share_a_link")
    ],
    "7.1 a late pull is LLM_TIMEOUT": [
        (TRANSFERS, "test_a_pull_that_takes_longer_than_sync_kv_timeout_raises_and_the_link_goes_on")
    ],
    "7.1 more than 16 clusters, and 240 addresses": [
        (LIMITS, "test_4_3_a_pull_of_more_tensors_than_fit_a_request"),
        ("call_sequences/test_clients.py", "test_mindie_separate_deployment"),
    ],
    "7.1 a key is released by a pull, not by a push": [
        (KEYS, "test_a_pull_that_succeeded_removes_the_key_it_used")
    ],
    "7.1 swap_blocks of what does not fit": [(COPIES, "2.6 block sizes differ")],
    "7.1 get_results is never None": [(ASYNC, "test_a_config_that_has_ended_says_so_while_another_runs")],
    "7.1 unregister_cache works in any mode": [
        (LOST, "test_a_cache_unregistered_under_a_link_is_released_when_the_peer_has_confirmed")
    ],
    "7.1 dst_block_memory_size 0 is as omitted, where it may be": [
        (SEED_001,
         "test_dst_block_memory_size_is_that_of_the_source_block_when_it_is_omitted"),
        ("conformance/test_transfer_cache_async.py", "2.7.3 size 0"),
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("file", "case"),
    [pytest.param(*case, id=f"{name}: {case[1]}") for name, cases in ROWS.items() for case in cases],
)
def test_each_row_of_the_tables_has_its_cases(file: str, case: str) -> None:
    text = (TESTS / file).read_text()

    assert f"def {case}(" in text if case.startswith("test_") else f'"{case}' in text
