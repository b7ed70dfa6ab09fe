"""A firewall between hosts that lets links be made, and stops the ports over which an engine moves bytes."""

from __future__ import annotations

import pytest
import torch

from tests import instances
from tests.test_emulated_hosts import made
from tests.test_engine_transports import needs_nixl, why_lost
from tests.test_links_across_hosts import content, link, pattern, relink, started
from tests.test_ordering import DST, LAYERS, SRC

PORT = 26123
KEEP_ALIVE_MS = 2000


@pytest.mark.parametrize("transport", [pytest.param("nixl", marks=needs_nixl), "hixl"])
def test_closed_ports_of_an_engine_hold_nobody_and_are_named(transport: str) -> None:
    options = {"transport": transport, "keep_alive_ms": KEEP_ALIVE_MS}
    with made("near", "far") as lab, started(lab, PORT, **options) as (a, b, _):
        for cluster_id, peer in ((1, a), (2, b)):
            peer.call(instances.register, cluster_id, 2 * LAYERS, 24, 256)
        lab.network.open_only(PORT)

        # A control thread that waited for a connection would answer nobody else, for two minutes.
        assert a.call(link, lab["far"].address, PORT) == ["LLM_SUCCESS"]
        for peer, other in ((a, 2), (b, 1)):
            assert f"nothing has come over {transport} in {KEEP_ALIVE_MS} ms" in peer.call(why_lost, other)

        lab.network.open_all()
        assert a.call(relink) == ["LLM_SUCCESS"]
        b.call(instances.wait_linked, 1)
        a.call(instances.push_blocks, 2, SRC, DST)
        expected = pattern(2)
        expected[:, DST] = pattern(1)[:, SRC]
        assert torch.equal(content(b), expected)
