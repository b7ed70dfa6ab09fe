"""Links where the runtime refuses value writes into a peer's memory: their words are copied instead."""

from __future__ import annotations

import pytest
import torch

from tests import instances
from tests.test_ordering import (
    LAYERS,
    expected_at_receiver,
    prepare,
    receive_layer_by_layer,
    send_layer_by_layer,
    slow_down,
    what_was_seen,
)
from tests.test_push_blocks import BLOCKS, linked_pair, reference, scattered
from torch_llm_datadist import emulator


def refuse(state):
    emulator.let_values_reach_peers(False)


@pytest.fixture(params=["one side refuses", "both sides refuse"])
def pair(request, peers):
    """Linked after the refusal began, so that the first word of each link meets it."""

    def refusing(count):
        made = peers(count)
        for peer in made[: 1 if request.param.startswith("one") else count]:
            peer.call(refuse)
        return made

    return linked_pair(refusing, 2 * LAYERS, 256)


def test_pushed_and_pulled_blocks_arrive(pair):
    a, b = pair
    src, dst = scattered(3, 9)

    a.call(instances.push_blocks, 2, src, dst)
    b.call(instances.push_blocks, 1, src, dst)
    a.call(instances.pull_blocks, 2, dst, src)

    before_a, before_b = (instances.pattern(seed, 2 * LAYERS, BLOCKS, 256) for seed in (10, 20))
    both = range(2 * LAYERS)
    after_b = reference(before_a, before_b, src, dst, both, both)
    after_a = reference(after_b, before_a, src, dst, both, both)
    after_a = reference(after_b, after_a, dst, src, both, both)
    assert torch.equal(b.call(instances.content), after_b)
    assert torch.equal(a.call(instances.content), after_a)


def test_a_layer_is_announced_after_its_last_byte(pair):
    a, b = pair
    for _ in range(2):  # the second has a slot that was given back by such a word
        b.call(receive_layer_by_layer, a.call(prepare))
        a.call(slow_down)

        assert a.call(send_layer_by_layer) == 0

        status, seen = b.call(what_was_seen)
        assert status == 0
        assert torch.equal(seen, expected_at_receiver())
