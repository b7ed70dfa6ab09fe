"""What the benchmarks measure, at small sizes: that they run, and that what they show holds."""

from __future__ import annotations

import pytest

from benchmarks import bench_layerwise_overlap as overlap

LAYERS, COMPUTE_MS, TRANSFER_MS = 4, 100.0, 20.0


@pytest.mark.parametrize("mode", overlap.MODES)
def test_layers_that_are_pushed_one_by_one_arrive_while_the_forward_computes(mode: str) -> None:
    found = overlap.measure(mode, LAYERS, COMPUTE_MS, TRANSFER_MS, rounds=1)

    pushed, computed = found["overlapped"], found["overlapped"]["computed"]
    # By event times: decode could begin before prefill's last layer was computed.
    assert pushed["arrived"][0] < computed
    assert pushed["arrived"] == sorted(pushed["arrived"])
    assert found["afterwards_ms"] >= found["forward_alone_ms"] + LAYERS * TRANSFER_MS
    # No layer arrives before it was computed and had the time to travel.
    ends = pushed["kernel_ends"]
    assert len(ends) == (0 if mode == "replayed" else LAYERS)
    assert all(there - end >= TRANSFER_MS for end, there in zip(ends, pushed["arrived"], strict=False))
