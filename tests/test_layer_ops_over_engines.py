"""Layer ops, packed transfers and their deadlines, once more over each engine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.over_engines import engine as engine
from tests.over_engines import require_links_over
from tests.test_binding_graphs import (  # noqa: F401
    test_a_replay_waits_for_several_tickets_of_one_bind,
    test_each_forward_serves_what_was_bound_to_it,
    test_eager_ops_on_gates_that_a_graph_holds,
    test_one_replay_has_several_destinations_and_partial_layer_ranges,
)
from tests.test_packed import (  # noqa: F401
    Pair,
    linked_pair,
    nothing_is_left_running,
    test_blocks_arrive_where_the_receiver_says,
    test_each_layer_arrives_before_the_next_one_is_pushed,
    test_forwards_and_graphs_wait_for_the_scatter,
    test_packed_brings_the_same_bytes_as_direct,
    test_running_out_of_staging_is_a_wait_with_a_deadline,
    test_what_is_never_expected_times_out_alone_and_says_so,
    unused_pair,
)
from tests.trio import Trio, linked_trio


@pytest.fixture(scope="module")
def pair(engine: str) -> Iterator[Pair]:
    with linked_pair(1, 2) as both:
        require_links_over(engine, both)
        yield both


@pytest.fixture(scope="module")
def trio(engine: str) -> Iterator[Trio]:
    with linked_trio() as all_three:
        require_links_over(engine, all_three)
        yield all_three
