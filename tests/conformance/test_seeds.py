"""The five documents of the mission, sentence by sentence: the tests of each, and that they are there.

A sentence is told here in a few words, in the document's order. What a page says twice (push_blocks has a
second table of the same three arguments) is there once.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).parent.parent

PRODUCTS = ("Atlas A3, Atlas 800I A2: yes", "test_seed_products.py::test_products_atlas_a2_and_a3_are_served")
LAYERS = [
    ("layer ranges: optional, None by default; not set: all layers",
     "test_layer_ranges_are_optional_and_none_means_all_layers"),
    ("layer ranges: of the source and of the destination",
     "test_constraint_only_equal_layer_ranges_is_lifted"),
    ("layer ranges: step 1 only", "test_layer_ranges_support_only_step_1"),
    ("layer ranges: of layers, each of N tensors in a row, KV, ..., KV",
     "test_a_range_counts_layers_each_of_n_consecutive_tensors"),
]  # fmt: skip

SENTENCES: dict[str, list[tuple[str, str]]] = {
    "test_seed_transfer_with_cache_key_config.py": [  # 000
        PRODUCTS,
        ("constructs a TransferWithCacheKeyConfig",
         "test_function_it_constructs_a_transfer_with_cache_key_config"),
        ("prototype", "test_prototype_names_order_and_defaults"),
        ("cache_key: one of two classes; the cluster of the destination",
         "test_cache_key_is_one_of_two_classes_and_names_the_cluster_of_the_destination"),
        ("src_layer_range, dst_layer_range: required", "test_both_layer_ranges_are_required"),
        ("src_layer_range: of the local layers; dst_layer_range: of the remote ones",
         "test_src_is_the_local_and_dst_the_remote_range_and_src_batch_index_the_local_entry"),
        ("src_layer_range, dst_layer_range: step 1 only", "test_layer_ranges_support_only_step_1"),
        ("src_batch_index: of the local cache",
         "test_src_is_the_local_and_dst_the_remote_range_and_src_batch_index_the_local_entry"),
        ("src_batch_index: may be set where the source is not paged",
         "test_src_batch_index_can_be_set_for_a_source_that_is_not_paged"),
        ("example", "test_example_of_the_seed"),
        ("returns an instance", "test_function_it_constructs_a_transfer_with_cache_key_config"),
        ("TypeError, ValueError or LLMException", "test_errors_are_type_error_value_error_or_llm_exception"),
        ("the source range equals the destination range",
         "test_constraint_the_source_range_is_as_long_as_the_destination_range"),
        ("with a BlocksCacheKey src_batch_index is 0",
         "test_constraint_src_batch_index_is_0_with_a_blocks_cache_key"),
    ],
    "test_seed_transfer_cache_async.py": [  # 001
        PRODUCTS,
        ("asynchronous and layer by layer",
         "test_function_it_sends_a_cache_asynchronously_and_layer_by_layer"),
        ("prototype", "test_prototype_names_order_and_defaults"),
        ("src_cache: the source", "test_src_cache_is_the_cache_that_is_sent"),
        ("layer_synchronizer: an object of a class that implements it",
         "test_layer_synchronizer_is_an_object_of_a_class_that_implements_it"),
        ("transfer_configs: list or tuple", "test_transfer_configs_are_a_list_or_a_tuple"),
        ("src_block_indices, dst_block_indices: set where that end is paged",
         "test_block_indices_name_the_blocks_of_a_paged_source_and_a_paged_destination"),
        ("src_block_indices, dst_block_indices: else not",
         "test_without_block_indices_an_entry_of_a_contiguous_source_goes_to_an_entry"),
        ("dst_block_memory_size: of each block of a paged destination",
         "test_dst_block_memory_size_says_how_an_entry_is_cut_into_destination_blocks"),
        ("dst_block_memory_size: may be left out where the source is paged; it is then the source's",
         "test_dst_block_memory_size_is_that_of_the_source_block_when_it_is_omitted"),
        ("dst_block_memory_size: 0 is as left out",
         "test_dst_block_memory_size_is_that_of_the_source_block_when_it_is_omitted"),
        ("example", "test_example_of_the_seed_returns_a_cache_task"),
        ("returns a CacheTask", "test_example_of_the_seed_returns_a_cache_task"),
        ("wrong types: TypeError, ValueError", "test_wrong_types_raise_type_error_or_value_error"),
        ("illegal values: LLMException", "test_illegal_values_raise_llm_exception"),
        ("no host source with a device destination", "test_constraint_a_source_on_the_host_is_refused"),
        ("no paged source with a destination that is not",
         "test_constraint_paged_source_to_a_destination_that_is_not_is_refused"),
        ("not several devices in one process",
         "test_constraint_single_process_with_several_devices_is_lifted"),
        ("a host destination comes from allocate_cache",
         "test_constraint_a_host_destination_from_allocate_cache_only_is_lifted"),
        ("the caller answers for dst_addrs",
         "test_constraint_the_caller_answers_for_dst_addrs_is_lifted_they_are_checked"),
        ("the caller answers for dst_block_indices",
         "test_constraint_the_caller_answers_for_block_indices_is_lifted_they_are_checked"),
        ("with remote access configs with keys",
         "test_constraint_remote_accessible_mode_takes_configs_with_keys_only"),
        ("without it configs with addresses", "test_constraint_without_it_configs_with_addresses_only"),
    ],
    "test_seed_blocks_cache_key.py": [  # 002
        PRODUCTS,
        ("constructs a BlocksCacheKey", "test_function_it_constructs_a_blocks_cache_key"),
        ("for allocate_blocks_cache, pull_blocks, push_blocks",
         "test_function_it_is_an_argument_of_allocate_blocks_cache_pull_blocks_and_push_blocks"),
        ("prototype", "test_prototype_takes_args_and_kwargs"),
        ("cluster_id: of the remote cluster of the cache",
         "test_cluster_id_is_the_remote_cluster_that_holds_the_cache"),
        ("cluster_id: required", "test_cluster_id_is_required"),
        ("model_id: that of the cache", "test_model_id_tells_the_caches_of_a_cluster_apart"),
        ("model_id: 0 by default", "test_model_id_is_0_by_default"),
        ("example", "test_example_of_the_seed"),
        ("returns an instance", "test_function_it_constructs_a_blocks_cache_key"),
        ("wrong types: TypeError, ValueError", "test_wrong_types_raise_type_error_or_value_error"),
    ],
    "test_seed_push_blocks.py": [  # 003
        PRODUCTS,
        ("by a list of blocks, from the local node to the cache of the key",
         "test_function_blocks_go_from_the_local_node_to_the_cache_of_the_key"),
        ("prototype", "test_prototype_names_order_and_defaults"),
        ("dst_cache_key: a BlocksCacheKey, of the remote cache",
         "test_dst_cache_key_is_a_blocks_cache_key_of_the_remote_cache"),
        ("src_cache: a local one", "test_src_cache_is_a_local_cache"),
        ("src_blocks: optional", "test_src_blocks_are_optional_in_type_and_needed_in_fact"),
        ("src_blocks: local indices; dst_blocks: remote ones; list or tuple",
         "test_src_blocks_are_local_and_dst_blocks_remote_indices_in_a_list_or_tuple"),
        *LAYERS,
        ("tensor_num_per_layer: N, 2 by default", "test_tensor_num_per_layer_is_2_by_default"),
        ("tensor_num_per_layer: from 1 to the number of tensors",
         "test_tensor_num_per_layer_is_1_to_the_number_of_tensors"),
        ("tensor_num_per_layer: with a range it divides the number of tensors",
         "test_with_a_range_tensor_num_per_layer_divides_the_number_of_tensors"),
        ("tensor_num_per_layer: with a range the default may stay",
         "conformance/test_combinations.py::"
         "test_tensors_per_layer_by_default_with_a_range_of_an_odd_number_of_tensors"),
        ("tensor_num_per_layer: without a range it need not divide",
         "test_without_a_range_all_layers_go_whatever_tensor_num_per_layer_is"),
        ("returns nothing", "test_return_value_is_none"),
        ("wrong types: TypeError, ValueError", "test_wrong_types_raise_type_error_or_value_error"),
        ("longer than sync_kv_timeout: LLMException",
         "test_longer_than_sync_kv_timeout_raises_llm_exception"),
        ("a bad layer range: LLMException", "test_a_bad_layer_range_raises_llm_exception"),
        ("host to device: both paged", "test_constraint_host_to_device_where_both_are_paged"),
        ("remote access has conditions of its own",
         "test_constraint_with_remote_access_both_caches_are_remote_accessible"),
        ("D2H and H2D: a device pool at the host's end",
         "test_constraint_d2h_and_h2d_need_a_device_pool_is_lifted"),
        ("equal layer ranges only", "test_constraint_only_equal_layer_ranges_is_lifted"),
    ],
    "test_seed_push_cache.py": [  # 004
        PRODUCTS,
        ("by the key, from the local node to the remote cache",
         "test_function_a_cache_goes_from_the_local_node_to_the_remote_cache_of_the_key"),
        ("prototype", "test_prototype_names_order_and_defaults"),
        ("dst_cache_key: a CacheKeyByIdAndIndex, of the remote cache",
         "test_dst_cache_key_is_a_cache_key_by_id_and_index_of_the_remote_cache"),
        ("src_cache: a local one", "test_src_cache_is_a_local_cache"),
        ("src_batch_index: the local one, 0 by default",
         "test_src_batch_index_is_the_local_batch_index_and_0_by_default"),
        *LAYERS,
        ("tensor_num_per_layer: 2 by default, from 1 to the number of tensors",
         "test_tensor_num_per_layer_is_1_to_the_number_of_tensors_and_2_by_default"),
        ("tensor_num_per_layer: with a range it divides the number of tensors",
         "test_with_a_range_tensor_num_per_layer_divides_the_number_of_tensors"),
        ("tensor_num_per_layer: without a range it need not divide",
         "test_without_a_range_all_layers_go_whatever_tensor_num_per_layer_is"),
        ("size: -1 is one local KV, nothing else is supported",
         "test_size_minus_1_is_one_local_kv_and_nothing_else_is_supported"),
        ("returns nothing", "test_return_value_is_none"),
        ("wrong types: TypeError, ValueError", "test_wrong_types_raise_type_error_or_value_error"),
        ("longer than sync_kv_timeout: LLMException",
         "test_longer_than_sync_kv_timeout_raises_llm_exception"),
        ("a bad layer range: LLMException", "test_a_bad_layer_range_raises_llm_exception"),
        ("host to device: both contiguous", "test_constraint_host_to_device_where_both_are_contiguous"),
        ("with remote access the key is a CacheKeyByIdAndIndex",
         "test_constraint_with_remote_access_the_key_is_one_by_id_and_index"),
        ("D2H and H2D: a device pool at the host's end",
         "test_constraint_d2h_and_h2d_need_a_device_pool_is_lifted"),
        ("equal layer ranges only", "test_constraint_only_equal_layer_ranges_is_lifted"),
    ],
}  # fmt: skip


def names_in(path: str) -> set[str]:
    tree = ast.parse((TESTS / path).read_text())
    return {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name.startswith("test_")}


@pytest.mark.parametrize(
    ("file", "test"),
    [
        pytest.param(file, test, id=f"{file}: {sentence}")
        for file, sentences in SENTENCES.items()
        for sentence, test in sentences
    ],
)
def test_each_sentence_of_a_seed_has_a_test(file: str, test: str) -> None:
    path, _, name = test.rpartition("::")

    assert name in names_in(path or file)


@pytest.mark.parametrize("file", SENTENCES)
def test_each_test_of_a_seeds_file_is_of_a_sentence(file: str) -> None:
    named = {test for _, test in SENTENCES[file]}

    assert names_in(file) - named <= {"test_constraint_without_remote_access_it_is_not_there"}  # 1.7


def test_there_are_five_seeds() -> None:
    found = {path.name for path in TESTS.glob("test_seed_*.py")} - {"test_seed_products.py"}

    assert found == SENTENCES.keys()
