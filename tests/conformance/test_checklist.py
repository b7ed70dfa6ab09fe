"""7.3, the checklist for a compatibility test-suite: the tests of each item, and that they are there."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).parent.parent

ITEMS = {
    "1: every row of the 2.1 tables": [
        "conformance/test_codes.py::test_each_status_code_has_the_originals_number",
        "conformance/test_codes.py::test_there_are_no_other_status_codes",
        "conformance/test_codes.py::test_enumerations_have_the_original_numbers",
    ],
    "2: every Violation and Observed cell of section 2": [
        "conformance/test_config.py::test_bad_options_are_refused",
        "conformance/test_cluster_info.py::test_bad_cluster_infos_are_refused",
        "conformance/test_cluster_calls.py::test_bad_arguments_are_refused",
        "conformance/test_descriptors.py::test_bad_keys_are_refused",
        "conformance/test_descriptors.py::test_bad_descriptions_are_refused",
        "conformance/test_transfer_cache_async.py::test_bad_arguments_are_refused_at_once",
        "conformance/test_registration.py::test_registering_refuses",
        "conformance/test_registration.py::test_keys_and_flags_are_checked",
        "test_allocation_checks.py::test_allocation_refuses",
        "test_api_cache_manager.py::test_register_blocks_cache_refuses",
        "test_api_cache_manager.py::test_blocks_transfers_refuse",
        "test_entry_checks.py::test_pull_cache_refuses",
        "test_entry_checks.py::test_push_cache_refuses",
        "test_entry_checks.py::test_remap_registered_memory_checks_its_arguments_and_is_reserved",
        "test_local_copies.py::test_copy_cache_refuses",
        "test_local_copies.py::test_copy_blocks_refuses",
        "test_local_copies.py::test_swap_blocks_refuses",
        "test_two_sided_links.py::test_bad_arguments_are_refused",
        "test_switch_role.py::test_bad_arguments_are_refused",
    ],
    "3: the 24 points of 3.2": [
        "conformance/test_surprises.py::test_refused",
        "conformance/test_surprises.py::test_accepted",
        "conformance/test_surprises.py::test_every_point_has_a_case",
    ],
    "4: lifetime of keys (4.2)": [
        "test_cache_keys_lifetime.py::test_a_pull_that_succeeded_removes_the_key_it_used",
        "test_cache_keys_lifetime.py::test_a_pull_by_id_removes_the_key_of_that_entry",
        "test_cache_keys_lifetime.py::test_prefix_keys_stay",
        "test_cache_keys_lifetime.py::test_keys_of_a_registered_cache_stay",
        "test_cache_keys_lifetime.py::test_with_remote_access_pulls_remove_nothing",
        "test_cache_keys_lifetime.py::test_a_key_goes_when_all_tensors_were_pulled_whoever_pulled_them",
        "test_cache_keys_lifetime.py::test_a_failed_pull_keeps_the_key",
        "test_cache_keys_lifetime.py::test_models_have_request_ids_of_their_own",
        "test_allocated_caches.py::test_memory_is_free_when_the_handle_and_all_keys_are_gone",
    ],
    "5: the combinations of 2.8 and their rejections": [
        "test_host_caches.py::test_every_pair_of_placements_moves_the_bytes",
        "test_transfer_async_shapes.py::test_entry_to_entry_by_key",
        "test_transfer_async_shapes.py::test_entry_to_blocks_by_either_key",
        "test_transfer_async_shapes.py::test_entry_to_a_host_cache",
        "test_transfer_async_shapes.py::test_what_does_not_fit_is_refused_in_the_results",
        "test_entry_checks.py::test_pull_blocks_of_an_entry_refuses",
    ],
    "6: layer ranges from elsewhere than 0, unequal, 1 to 3 tensors per layer": [
        "test_entry_transfers.py::test_layer_ranges_of_entries_start_anywhere_and_may_differ",
        "test_api_cache_manager.py::test_layer_ranges_start_anywhere_and_may_differ",
        "test_transfer_async.py::test_layer_src_start_plus_k_goes_to_layer_dst_start_plus_k",
    ],
    "7: several configs, of which one fails": [
        "test_transfer_async.py::test_a_failing_destination_does_not_stop_the_others",
    ],
    "8: a client and a server start again": [
        "test_api_lost_peers.py::test_a_killed_server_fails_pushes_and_can_be_replaced_at_its_address",
        "test_api_lost_peers.py::test_a_killed_client_can_be_replaced_without_the_servers_help",
        "test_two_sided_links.py::test_a_killed_member_is_replaced",
    ],
    "9: registering after linking": [
        "test_link_caches.py::test_a_cache_registered_after_linking_is_announced",
        "test_data_properties.py::test_what_moves_is_what_plain_torch_moves",  # each cache after linking
        "test_two_sided_links.py::test_a_cache_registered_after_link_is_reachable",
    ],
    "10: two caches that share an address": [
        "test_allocated_caches.py::test_two_caches_may_share_their_addresses",
    ],
    "11: at the same time": [
        "conformance/test_concurrency.py::test_a_pull_ends_while_one_on_another_link_stands_still",
        "conformance/test_concurrency.py::test_a_push_ends_while_one_to_another_peer_stands_still",
        "conformance/test_concurrency.py::test_pulls_and_a_transfer_share_a_link",
        "conformance/test_concurrency.py::test_finalize_during_a_blocking_call_answers_it",
        "conformance/test_concurrency.py::test_finalize_of_the_peer_during_a_blocking_call_answers_it",
        "test_transfer_async.py::test_finalize_answers_a_transfer_whose_synchronizer_does_not_return",
    ],
}


def functions_of(path: str) -> set[str]:
    tree = ast.parse((TESTS / path).read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("item", ITEMS)
def test_each_item_of_the_checklist_has_its_tests(item: str) -> None:
    for test in ITEMS[item]:
        path, _, name = test.partition("::")
        assert name in functions_of(path), test


def test_the_checklist_is_whole() -> None:
    assert [int(item.split(":")[0]) for item in ITEMS] == list(range(1, 12))
