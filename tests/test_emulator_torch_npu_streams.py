"""Streams and events the way users of torch_npu have them."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch_npu  # noqa: F401

from tests.streams import standing_still
from torch_llm_datadist import emulator

DELAY_S = 0.05


@pytest.fixture(autouse=True)
def idle_device() -> None:
    torch.npu.init()
    torch.npu.set_stream(torch.npu.default_stream(0))
    torch.npu.synchronize()


def late(value: float, stream: torch.npu.Stream) -> torch.Tensor:
    """A tensor that a slow kernel on the stream fills."""
    tensor = torch.zeros(4, device="npu")
    torch.npu.synchronize()
    with torch.npu.stream(stream):
        emulator.delay_stream(DELAY_S)
        tensor.fill_(value)
    return tensor


def test_work_is_on_the_stream_of_the_context() -> None:
    side = torch.npu.Stream()

    with torch.npu.stream(side):
        inside = torch.npu.current_stream()

    with standing_still(side):
        emulator.delay_stream(0, side)

        assert inside == side
        assert torch.npu.current_stream() == torch.npu.default_stream() != side
        assert not side.query()
    side.synchronize()
    assert side.query()


def wait_stream(side: torch.npu.Stream) -> None:
    torch.npu.current_stream().wait_stream(side)


def wait_event(side: torch.npu.Stream) -> None:
    torch.npu.current_stream().wait_event(side.record_event())


def event_wait(side: torch.npu.Stream) -> None:
    event = torch.npu.Event()
    event.record(side)
    event.wait()


def external_event(side: torch.npu.Stream) -> None:
    event = torch.npu.ExternalEvent()
    event.record(side)
    event.wait(torch.npu.current_stream())
    event.reset(torch.npu.current_stream())


def generic_event(side: torch.npu.Stream) -> None:
    event = torch.Event(device="npu")
    event.record(side)
    torch.npu.current_stream().wait_event(event)


def blocking_event(side: torch.npu.Stream) -> None:
    event = torch.npu.Event(blocking=True)
    event.record(side)
    event.synchronize()


@pytest.mark.parametrize(
    "order", [wait_stream, wait_event, event_wait, external_event, generic_event, blocking_event]
)
def test_current_stream_reads_after_the_side_stream_wrote(order: Callable[[torch.npu.Stream], None]) -> None:
    side = torch.npu.Stream()
    tensor = late(3, side)

    order(side)

    assert tensor.tolist() == [3, 3, 3, 3]


@pytest.mark.races_on_purpose("the order is left out")
def test_without_an_order_the_current_stream_reads_too_early() -> None:
    side = torch.npu.Stream()

    with standing_still(side):
        tensor = late(3, side)
        assert tensor.tolist() == [0, 0, 0, 0]


def test_stream_of_high_priority_is_a_stream() -> None:
    side = torch.npu.Stream(priority=-1)
    tensor = late(3, side)

    side.synchronize()

    assert tensor.tolist() == [3, 3, 3, 3]


def test_external_stream_is_the_stream_it_wraps() -> None:
    side = torch.npu.Stream()
    wrapped = torch.npu.ExternalStream(side.npu_stream)

    with standing_still(side):
        tensor = late(3, wrapped)
        assert not side.query()

    with pytest.raises(RuntimeError, match="External NPU stream is not supported"):  # torch_npu's own rule
        wrapped.synchronize()
    torch.npu.current_stream().wait_stream(side)
    assert tensor.tolist() == [3, 3, 3, 3]


def test_sync_launch_stream_computes() -> None:
    side = torch.npu.SyncLaunchStream()

    with torch.npu.stream(side):
        tensor = torch.ones(4, device="npu") * 2
    side.synchronize()

    assert tensor.tolist() == [2, 2, 2, 2]


def test_generic_stream_of_torch_is_one_of_the_npu() -> None:
    side = torch.Stream(device="npu")

    with side:
        tensor = torch.ones(4, device="npu") * 2
    side.synchronize()

    assert torch.accelerator.current_accelerator() == torch.device("npu")
    assert tensor.tolist() == [2, 2, 2, 2]


def test_timing_events_measure_the_work_between_them() -> None:
    begin, end = (torch.npu.Event(enable_timing=True) for _ in range(2))

    with standing_still():
        begin.record()
        emulator.delay_stream(DELAY_S)
        end.record()
        pending = end.query()
    end.synchronize()

    assert not pending
    assert end.query()
    assert DELAY_S * 1e3 <= begin.elapsed_time(end) < 60e3
    assert end.recorded_time() > begin.recorded_time()


def test_event_without_timing_has_no_time() -> None:
    begin, end = torch.npu.Event(), torch.npu.Event()
    begin.record()
    end.record()
    end.synchronize()

    with pytest.raises(RuntimeError, match="aclrtEventElapsedTime"):
        begin.elapsed_time(end)


def test_event_that_was_never_recorded_holds_nobody() -> None:
    event = torch.npu.Event()

    event.wait()
    event.synchronize()

    assert event.query()


def test_event_may_be_dropped_while_a_stream_waits_for_it() -> None:
    side = torch.npu.Stream()
    tensor = late(3, side)

    torch.npu.current_stream().wait_event(side.record_event())

    assert tensor.tolist() == [3, 3, 3, 3]


def test_memory_is_not_reused_while_a_recorded_stream_reads_it() -> None:
    side = torch.npu.Stream()
    source = torch.ones(1 << 18, device="npu")
    torch.npu.synchronize()
    address = source.data_ptr()

    with standing_still(side):
        with torch.npu.stream(side):
            copy = source.clone()
        source.record_stream(side)
        del source
        other = torch.full((1 << 18,), 7.0, device="npu")
    torch.npu.synchronize()

    assert other.data_ptr() != address
    assert bool((copy == 1).all())


def test_event_of_one_device_may_be_awaited_by_the_host_on_behalf_of_another() -> None:
    tensor = late(3, torch.npu.current_stream(0))
    event = torch.npu.current_stream(0).record_event()

    with torch.npu.device(1):
        event.synchronize()
        moved = tensor.to("npu:1")

    assert moved.tolist() == [3, 3, 3, 3]


def test_a_stream_waits_for_an_event_of_another_device() -> None:
    tensor = torch.zeros(4, device="npu")
    torch.npu.synchronize()
    other = torch.npu.Stream(device=1)

    with standing_still():
        tensor.fill_(3)
        event = torch.npu.current_stream().record_event()
        # Each device has a task queue of its own: what is asked of a stream empties the first before the
        # wait goes into the second, which would find an event that was never recorded.
        assert torch.npu.current_stream().npu_stream
        other.wait_event(event)

        reached = other.record_event()
        assert not reached.query()
    torch.npu.synchronize(0)
    other.synchronize()
    assert reached.query()
    assert tensor.tolist() == [3, 3, 3, 3]


def test_host_function_runs_in_stream_order() -> None:
    side, seen = torch.npu.Stream(), []
    torch.npu._subscribe_report(side)

    with standing_still(side):
        tensor = late(3, side)
        with torch.npu.stream(side):
            torch.npu._launch_host_func(side, lambda argument: seen.append(argument), "ran")
        early = list(seen)
    side.synchronize()
    torch.npu._unsubscribe_report(side)

    assert early == []
    assert seen == ["ran"]
    assert tensor.tolist() == [3, 3, 3, 3]


def test_many_streams_run_side_by_side() -> None:
    begun = time.monotonic()
    sides = [torch.npu.Stream() for _ in range(8)]
    tensors = [late(i, side) for i, side in enumerate(sides)]
    assert time.monotonic() - begun < 30

    for side in sides:
        torch.npu.current_stream().wait_stream(side)

    assert [int(tensor[0]) for tensor in tensors] == list(range(8))


def test_torch_npus_own_polling_leaves_the_cores_to_the_device() -> None:
    def slack_ns() -> set[str]:
        return {
            Path(f"/proc/{thread.name}/timerslack_ns").read_text().strip()
            for thread in Path("/proc/self/task").iterdir()
            if (thread / "comm").read_text() == "release_thread\n"
        }

    deadline = time.monotonic() + 20
    try:
        # A stream's first task looks for it, and on a busy machine it may not have begun.
        while slack_ns() != {"1000000"}:
            assert time.monotonic() < deadline, slack_ns()
            with torch.npu.stream(torch.npu.Stream()):
                torch.ones(2, device="npu").sum().item()
    except PermissionError:
        pytest.skip("only who has CAP_SYS_NICE may say how long another thread sleeps")
