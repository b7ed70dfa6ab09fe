"""What benchmarks say of their figures: where they come from, how they sum up, what they must reach."""

from __future__ import annotations

import importlib
import json
import logging
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import bounds, compare_peers, projected, report, write_performance
from torch_llm_datadist import emulator


class StoppedError(Exception):
    pass


@pytest.mark.parametrize(
    ("command", "measured_on"),
    [
        *[
            (name, report.EMULATED)
            for name in (
                "bench_blocks",
                "bench_dispatch",
                "bench_layerwise_overlap",
                "bench_scale",
                "bench_wire",
                "compare_peers",
                "sim_fleet",
            )
        ],
        ("bench_blocks --profile a2", "projected for A2 in simulated time; no figure of a real device"),
    ],
)
def test_the_first_line_says_what_the_figures_are_of(
    command: str, measured_on: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name, *arguments = command.split()
    main = importlib.import_module(f"benchmarks.{name}").main
    print_head = report.print_head

    def print_head_and_stop(facts: dict[str, Any]) -> None:
        print_head(facts)
        raise StoppedError

    monkeypatch.setattr(report, "print_head", print_head_and_stop)
    # What they set for a process of their own.
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    monkeypatch.setattr(logging.getLogger("torch_llm_datadist"), "setLevel", lambda level: None)
    monkeypatch.setattr(compare_peers, "PYTHON", Path(sys.executable))
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    with pytest.raises(StoppedError):
        main()

    first, second = capsys.readouterr().out.splitlines()
    assert first == measured_on
    assert "cores" in second
    assert "torch_npu" in second


def test_figures_of_a_real_device_are_not_said_to_be_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emulator, "is_enabled", lambda: False)

    assert report.machine()["where"] == "Ascend NPUs"


ROUNDS: list[compare_peers.Round] = [
    # The machine is slow in the second round: by times alone ours would be beside another round's memcpy.
    {"ours": [1.0, 1.0, 1.5], "memcpy": [2.0, 2.0, 2.0], "nixl-tcp": [3.0, 3.0, 3.0], "gloo": [9.0] * 3},
    {"ours": [10.0, 10.0, 10.0], "memcpy": [18.0, 18.0, 18.0], "nixl-tcp": [16.0, 16.0, 16.0]},
    {"ours": [2.0, 2.0, 2.0], "memcpy": [3.0, 3.0, 3.0], "nixl-tcp": [4.0, 4.0, 4.0], "gloo": [6.0] * 3},
]


def test_ratios_are_of_one_round_and_their_median_counts() -> None:
    engines = compare_peers.sum_up(10**9, ROUNDS)

    assert list(engines) == ["ours", "memcpy", "nixl-tcp", "gloo"]
    assert engines["ours"]["to_memcpy"] == pytest.approx(1.8)  # of 2.0, 1.8 and 1.5
    assert engines["nixl-tcp"]["to_ours"] == pytest.approx(2.0)  # of 3.0, 1.6 and 2.0
    assert engines["ours"]["median_us"] == 2e6
    assert engines["ours"]["p99_us"] == 1e7
    assert [(row["rounds"], row["runs"]) for row in engines.values()] == [(3, 3)] * 3 + [(2, 3)]
    assert engines["gloo"]["to_ours"] == pytest.approx(6.0)  # it failed in the second round


def latency(op_us: float, by_hand_us: float) -> dict[str, Any]:
    times = {"call": 300.0, "bind": 200.0, "op": op_us, "hand, bind": 120.0, "hand, op": by_hand_us}
    return {
        f"{when}, {what}": {"median_us": us, "p99_us": 2 * us, "runs": 100}
        for when in ("back to back", "idle")
        for what, us in times.items()
    }


def canned() -> dict[str, dict[str, Any]]:
    """By the name of its file, what each benchmark writes."""
    machine = report.machine()
    sums = {"median_us": 100.0, "p99_us": 150.0, "runs": 9}
    costs = {"over_empty_us": 4.0, "over_empty_core_us": 3.0, "over_custom_op_us": -9.0, "empty_us": 6.0}
    timeline = {"arrived": [1.0], "kernel_ends": [0.5], "computed": 0.5}
    ways = [
        {"block_bytes": 16384, "way": way, "gb_per_s": 90.4, "is_packed": True, "seconds": 1.0, "copies": 1}
        for way in projected.WAYS
    ]
    case = {"case": "64 x 64 blocks of 16 KiB", **sums, "gb_per_s": 7.0, "to_memcpy": 1.05}
    return {
        "blocks": {
            "machine": machine,
            "cases": {"d": {**case, "blocking": sums, "blocking_to_memcpy": 1.0}},
            "latency": {"0": latency(150.0, 100.0), "1": latency(140.0, 100.0)},
        },
        "peers": {
            "machine": machine,
            "versions": {"nixl-tcp": "nixl-cu12 1.5.1", "gloo": "torch 2.13.0"},
            "network": "a network namespace with reno",
            "cases": {
                "d": {
                    "case": case["case"],
                    "engines": compare_peers.sum_up(10**9, ROUNDS),
                    "failures": {"gloo": "not done within 180 s"},
                }
            },
        },
        "dispatch": {
            "machine": machine,
            "sizes": "caches of 8 tensors",
            "ops": [
                {"op": "push_blocks", **sums, **costs, "is_bounded": True},
                {
                    "op": f"push_blocks{bounds.MANY_BLOCKS}",
                    **sums,
                    **costs,
                    "over_empty_us": 6.9,
                    "is_bounded": True,
                },
                {"op": "store_layer", **sums, **costs, "over_empty_us": 50.0, "is_bounded": False},
            ],
        },
        "overlap": {
            "machine": machine,
            "modes": {
                "eager": {
                    "layers": 32,
                    "transfer_ms": 15.0,
                    "runs": 3,
                    "forward_alone_ms": 640.0,
                    "overlapped_ms": 660.0,
                    "overlapped_p99_ms": 664.4,
                    "afterwards_ms": 1130.0,
                    "afterwards_p99_ms": 1133.3,
                    "bound_ms": 670.0,
                    "overlapped": timeline,
                    "afterwards": timeline,
                }
            },
        },
        "projected": {
            "machine": report.machine("projected for A2 in simulated time; no figure of a real device"),
            "profile": "A2",
            "projected": {"costs": {"task_us": [0.8, "derived"]}, "total_bytes": 1 << 20, "pushes": ways},
            "published": projected.PUBLISHED["A2"],
        },
    }


def test_the_page_holds_what_the_benchmarks_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Path] = []
    monkeypatch.setattr(write_performance, "draw_peers", lambda results, target: drawn.append(target))
    for name, results in canned().items():
        report.write(tmp_path / f"{name}.json", results)
    target = tmp_path / "performance.md"
    monkeypatch.setattr(sys, "argv", ["write_performance", str(tmp_path), str(target)])
    write_performance.main()

    page = target.read_text()
    assert drawn == [tmp_path / write_performance.PICTURE]
    for line in (
        "| (d) 64 x 64 blocks of 16 KiB | 9 | 100 | 150 | 7.00 | 1.05 | 100 |",
        "| 0 | idle | 100 | 300 (600) | 200 (400) | 120 (240) | 1.67 | 150 (300) | 100 (200) | 1.50 |",
        "| (d) 64 x 64 blocks of 16 KiB | nixl-tcp | 3 x 3 | 4000000 | 3000000 to 16000000 | 16000000 | 0.25 "
        "| 0.75 | 2.00 |",
        "| (d) | gloo | failed: not done within 180 s | | | | | | |",
        "| push_blocks | 9 | 100.0 | 150 | 6.0 | +4.0 | +3.0 | -9.0 |",
        "| eager | 32 | 3 | 640.0 | 660.0 (664.4) | 670.0 | 1130.0 (1133.3) |",
        "| 16 KiB | 90.4 | 90.4 | 90.4 | 8.9 | 18.3 |",
        "| task_us | 0.8 | derived |",
    ):
        assert f"\n{line}\n" in page
    assert "Versions: nixl-tcp: nixl-cu12 1.5.1, gloo: torch 2.13.0." in page
    # Every table has the machine and what it was measured on above it.
    sections = [section for section in page.split("\n## ") if "\n|--" in section]
    assert len(sections) == len(canned())
    assert all("no figure of a real device; " in section for section in sections)
    # One that did not run is left out, and so is what says of it.
    (tmp_path / "overlap.json").unlink()
    write_performance.main()
    assert "| eager |" not in target.read_text()


def test_what_reaches_its_bounds_passes() -> None:
    found = canned()
    found["peers"]["cases"]["d"]["failures"] = {}

    missed = [getattr(bounds, name)(found[name]) for name in ("blocks", "peers", "dispatch")]

    assert missed == [[], [], []]
    bounds.require([])


@pytest.mark.parametrize(
    ("name", "place", "value", "missed"),
    [
        ("blocks", ("cases", "d", "to_memcpy"), 0.94, "(d): 0.94 x memcpy"),
        ("blocks", ("latency", "1", "idle, op", "median_us"), 151.0, "(f) TASK_QUEUE_ENABLE=1, idle: 1.51 x"),
        ("peers", ("cases", "d", "engines", "ours", "to_memcpy"), 0.94, "(d): 0.94 x memcpy"),
        ("peers", ("cases", "d", "engines", "gloo", "to_ours"), 1.49, "(d): 1.49 x gloo"),
        ("peers", ("cases", "d", "failures", "gloo"), "no output", "(d): gloo failed: no output"),
        ("dispatch", ("ops", 0, "over_empty_us"), 5.1, "push_blocks: 5.1 us over an empty op"),
        ("dispatch", ("ops", 1, "over_empty_us"), 7.1, "push_blocks, 100 blocks: 3.1 us over one block"),
    ],
)
def test_what_misses_a_bound_is_named(name: str, place: tuple[Any, ...], value: object, missed: str) -> None:
    found = canned()
    found["peers"]["cases"]["d"]["failures"] = {}
    holder: Any = found[name]
    for key in place[:-1]:
        holder = holder[key]
    holder[place[-1]] = value

    told = getattr(bounds, name)(json.loads(json.dumps(found[name])))

    assert [what[: len(missed)] for what in told] == [missed]
    with pytest.raises(SystemExit) as ended:
        bounds.require(told)
    assert missed in str(ended.value)
