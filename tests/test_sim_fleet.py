"""The simulated fleet, small: it runs the product's rules, does what the model says, and a seed decides."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest

import torch_llm_datadist as datadist
from benchmarks.fleet import scenarios
from benchmarks.fleet.costs import NETWORKS, LinkCosts, Model, NetworkCosts, Policy
from benchmarks.fleet.events import Cores, Simulation
from benchmarks.fleet.process import Fleet, simulated_clock
from benchmarks.fleet.traffic import Traffic
from torch_llm_datadist import LLMStatusCode, _native

MODEL = Model(layers=4)
ROCE = NETWORKS["a3-roce"]


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    """8 processes, 4 of them prefill, linked to 2 decode processes each."""
    made = scenarios.make_fleet(3, LinkCosts(), 8, 2, MODEL, Policy())
    with simulated_clock(made.simulation):
        scenarios.set_up(made)
        yield made


def test_what_is_due_happens_in_order_and_cores_serve_one_after_the_other() -> None:
    simulation, seen = Simulation(1), []
    cores = Cores(simulation, 2)
    simulation.after(2.0, lambda: seen.append("late"))
    simulation.after(1.0, lambda: seen.append("early"))
    simulation.after(1.0, lambda: seen.append("as early, asked for later"))

    began = simulation.now
    ends = [cores.use(3.0) - began for _ in range(3)]
    simulation.run()

    assert seen == ["early", "as early, asked for later", "late"]
    assert ends == [3.0, 3.0, 6.0]


def test_every_link_is_made_by_the_handshake_itself(fleet: Fleet) -> None:
    for one, others in fleet.partners.items():
        assert sorted(fleet.processes[one].linked_to()) == sorted(others)
        for other in others:
            assert one in fleet.processes[other].linked_to()
    assert fleet.network.messages == 4 * 8  # HELLO, WELCOME, JOIN, JOINED


def test_the_rules_of_the_handshake_hold_in_the_simulation(fleet: Fleet) -> None:
    said: list[tuple[int, str]] = []
    linked = fleet.partners[2][0]
    stranger = next(each for each in fleet.decodes() if each not in fleet.partners[2])
    fleet.processes[linked].link([linked, 2], 1.0, lambda other, code: said.append((other, code.name)))
    fleet.processes[stranger].fail()
    fleet.processes[2].link([stranger], 1.0, lambda other, code: said.append((other, code.name)))

    fleet.simulation.run(fleet.simulation.now + 3)

    assert said == [(linked, "LLM_PARAM_INVALID"), (2, "LLM_ALREADY_LINK"), (stranger, "LLM_LINK_FAILED")]


def test_an_orderly_unlink_ends_both_ends(fleet: Fleet) -> None:
    one, other = 1, fleet.partners[1][0]
    said: list[LLMStatusCode] = []

    fleet.processes[one].unlink(other, lambda _, code: said.append(code))
    fleet.simulation.run(fleet.simulation.now + 1)

    assert said == [LLMStatusCode.LLM_SUCCESS]
    assert not fleet.processes[one].has_link_to(other)
    assert not fleet.processes[other].has_link_to(one)


def test_a_seed_decides_everything() -> None:
    def run(seed: int) -> tuple[float, list[float]]:
        made = scenarios.make_fleet(seed, LinkCosts(), 8, 2, MODEL, Policy())
        with simulated_clock(made.simulation):
            scenarios.set_up(made)
            return made.simulation.now, scenarios.serve(made, ROCE, 20).counts.added_s

    assert run(5) == run(5)
    assert run(5) != run(6)


def test_a_request_adds_what_its_last_layer_takes_and_no_less(fleet: Fleet) -> None:
    traffic = scenarios.serve(fleet, ROCE, 30)

    counts = traffic.counts
    assert counts.arrived == counts.requests > 0
    smallest = MODEL.prompt_tokens[0] // MODEL.block_tokens * 2 * MODEL.block_bytes
    assert min(counts.added_s) > smallest / (ROCE.link_gb_s.value * 1e9)
    assert max(counts.added_s) < 0.1


def test_a_link_has_as_many_transfers_in_flight_as_the_option_says() -> None:
    slow = NetworkCosts("Ascend910_9391", ROCE.link_gb_s.__class__(0.05, "so slow that requests pile up"))
    policy = Policy(max_in_flight=2, requests_per_s=50)
    made = scenarios.make_fleet(3, LinkCosts(), 2, 1, MODEL, policy)
    with simulated_clock(made.simulation):
        scenarios.set_up(made)
        traffic = Traffic(made, slow)
        most = 0
        for _ in range(6):
            traffic.ask(2)
        until = made.simulation.now + 30
        while made.simulation.now < until:
            made.simulation.run(made.simulation.now + 0.01)
            for way in traffic.ways.values():
                most = max(most, sum(1 for each in way.in_flight.values() if each.slot[1]))

    assert most == 2
    assert traffic.counts.no_slot > 0
    assert traffic.counts.arrived == 6


@pytest.mark.parametrize("is_cut", [False, True])
def test_a_failed_node_is_noticed_replaced_and_its_requests_are_answered(is_cut: bool) -> None:
    policy = Policy(restart_s=20.0, cut_share=1.0 if is_cut else 0.0, requests_per_s=20)
    made = scenarios.make_fleet(7, LinkCosts(), 16, 4, MODEL, policy)
    with simulated_clock(made.simulation):
        scenarios.set_up(made)
        failures = scenarios.Failures(made, ROCE, per_node=2)
        hour = failures.run(0.125, hours=0.1)

        assert hour.nodes == 1
        assert hour.processes == 2
        keep_alive_s = policy.keep_alive_ms / 1e3
        assert keep_alive_s - 0.06 <= min(hour.noticed_s)
        assert max(hour.noticed_s) <= (policy.cut_s if is_cut else keep_alive_s) + 0.2
        assert hour.made >= 8
        for one, others in made.partners.items():
            assert sorted(made.processes[one].linked_to()) == sorted(others)
        counts = failures.traffic.counts
        assert counts.lost > 0
        assert counts.arrived == counts.requests
        # One that is cut off says in the end that its streams are drained; a dead one never does.
        assert (hour.in_doubt_at_the_end == 0) == (is_cut or hour.in_doubt == 0)


def test_links_and_memory_grow_by_the_same_for_each() -> None:
    rows = [scenarios.hub(1, LinkCosts(), links, MODEL) for links in (16, 32, 64, 128)]

    for what in ("seconds", "kib"):
        slope, _, r2 = scenarios.line([row["links"] for row in rows], [row[what] for row in rows])
        assert slope > 0
        assert r2 > 0.999


def test_windows_of_staging_serve_one_ticket_at_a_time() -> None:
    windows = _native.load().StagingWindows()

    assert windows.claim(3, 1)
    assert windows.claim(3, 1)
    assert not windows.claim(3, 2)
    windows.release(3, 2)
    assert not windows.claim(3, 2)
    windows.release(3, 1)
    assert windows.claim(3, 2)
    assert {windows.take(slot, 1) for slot in range(16)} == set(range(16))
    with pytest.raises(datadist.LLMException, match="window 16, expected less than 16"):
        windows.claim(16, 1)


def test_liveness_is_patience_with_a_word_that_counts_up() -> None:
    liveness = _native.load().Liveness(3000, 10.0)

    liveness.look(1, 11.0)
    liveness.look(1, 13.0)

    assert not liveness.is_lost(14.0)
    assert liveness.is_lost(14.001)
    liveness.look(2, 14.5)
    assert not liveness.is_lost(17.5)


def test_chunks_of_a_layer_hold_its_bytes() -> None:
    chunks = _native.load().packed_chunks([32 << 10, 32 << 10], 100, 64 << 20)

    assert sum(chunks) == 2 * 100 * (32 << 10)
    assert max(chunks) <= 2 << 20
    with pytest.raises(datadist.LLMException, match="does not fit into a chunk"):
        _native.load().packed_chunks([4 << 20], 1, 64 << 20)


def test_the_command_says_that_it_simulates(tmp_path) -> None:
    file = tmp_path / "fleet.json"
    command = [sys.executable, "-m", "torch_llm_datadist", "run", "--emulate", "-m", "benchmarks.sim_fleet"]
    sizes = ["--processes", "16", "--links", "2", "--requests", "20", "--most-links", "16", "--per-node", "2"]

    told = subprocess.run(
        [*command, *sizes, "--json", str(file)], capture_output=True, text=True, timeout=240
    )

    assert told.returncode == 0, told.stdout + told.stderr
    assert "simulated: 16 processes with 2 links each" in told.stdout
    assert "R²" in told.stdout
    found = json.loads(file.read_text())
    assert found["curves"]["seconds"]["r2"] > 0.9
    assert found["set_up"]["links"] == 16
    assert found["failures"]["never"] == 0
