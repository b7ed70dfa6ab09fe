"""Around the tensors: saving, loading, data loaders, profilers, compilers."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch_npu
from torch.utils.data import DataLoader, TensorDataset


@pytest.mark.parametrize(
    ("location", "devices"),
    [
        (None, ["npu:0", "npu:1"]),
        ("cpu", ["cpu", "cpu"]),
        ("npu:0", ["npu:0", "npu:0"]),
        ({"npu:1": "npu:0"}, ["npu:0", "npu:0"]),
        (lambda storage, where: storage, ["cpu", "cpu"]),
    ],
)
def test_saved_tensors_are_loaded_where_asked(location: object, devices: list[str]) -> None:
    saved = [torch.arange(5, device="npu:0"), torch.ones(2, 3, device="npu:1").half()]
    file = io.BytesIO()
    torch.save(saved, file)
    file.seek(0)

    loaded = torch.load(file, map_location=location)

    assert [str(tensor.device) for tensor in loaded] == devices
    assert all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(loaded, saved, strict=True))


def test_host_tensors_are_loaded_onto_the_device(tmp_path: Path) -> None:
    torch.save({"w": torch.arange(3)}, tmp_path / "w.pt")

    loaded = torch.load(tmp_path / "w.pt", map_location="npu")

    assert loaded["w"].tolist() == [0, 1, 2]
    assert loaded["w"].is_npu


def test_modules_and_optimizers_go_through_their_state(tmp_path: Path) -> None:
    module = torch.nn.Linear(3, 2).npu()
    optimizer = torch.optim.Adam(module.parameters())
    module(torch.ones(1, 3, device="npu")).sum().backward()
    optimizer.step()
    torch.save((module.state_dict(), optimizer.state_dict()), tmp_path / "state.pt")

    again = torch.nn.Linear(3, 2).npu()
    of_module, of_optimizer = torch.load(tmp_path / "state.pt")
    again.load_state_dict(of_module)
    other = torch.optim.Adam(again.parameters())
    other.load_state_dict(of_optimizer)

    assert torch.equal(again.weight, module.weight)
    moment = other.state[again.weight]["exp_avg"]
    assert moment.is_npu
    assert torch.equal(moment, optimizer.state[module.weight]["exp_avg"])


@pytest.mark.parametrize("workers", [0, 1])
def test_data_loader_pins_what_it_loads(workers: int) -> None:
    loader = DataLoader(
        TensorDataset(torch.arange(20.0)), batch_size=5, pin_memory=True, num_workers=workers,
        multiprocessing_context="fork" if workers else None,
    )  # fmt: skip

    batches = [batch for (batch,) in loader]

    assert all(batch.is_pinned() for batch in batches)
    assert torch.cat([batch.to("npu", non_blocking=True) for batch in batches]).tolist() == list(range(20))


def test_spans_of_the_torch_profiler_hold_the_ops() -> None:
    activities = torch.profiler.supported_activities()
    with (
        torch.profiler.profile(activities=activities) as profile,
        torch.profiler.record_function("my span"),
    ):
        torch.ones(3, device="npu").add(1).cpu()

    assert torch.profiler.ProfilerActivity.PrivateUse1 in activities
    names = {event.key for event in profile.key_averages()}
    assert {"my span", "aten::add", "aten::ones"} <= names


def test_torch_npus_own_profiler_starts_steps_and_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    ready = []
    with torch_npu.profiler.profile(
        activities=[torch_npu.profiler.ProfilerActivity.CPU, torch_npu.profiler.ProfilerActivity.NPU],
        schedule=torch_npu.profiler.schedule(wait=0, warmup=0, active=1, repeat=1),
        on_trace_ready=ready.append,
    ) as profile:
        torch.ones(3, device="npu").add(1).cpu()
        profile.step()

    assert ready == [profile]
    assert "[ERROR]" not in "".join(capfd.readouterr())


def test_spans_of_mstx_are_accepted(capfd: pytest.CaptureFixture[str]) -> None:
    stream = torch.npu.current_stream()

    torch.npu.mstx.mark("here")
    span = torch.npu.mstx.range_start("there", stream)
    torch.npu.mstx.range_end(span)

    assert "failed" not in "".join(capfd.readouterr())


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "npugraph_ex"])
def test_compiled_function_gives_the_eager_result(backend: str) -> None:
    def compute(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.silu(x) * 2 + x.sum(-1, keepdim=True)

    x = torch.randn(4, 5, generator=torch.Generator().manual_seed(0)).npu()
    torch._dynamo.reset()

    compiled = torch.compile(compute, backend=backend, fullgraph=True)

    assert torch.equal(compiled(x), compute(x))


def test_compiled_training_step_has_the_eager_gradients() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.GELU(), torch.nn.Linear(8, 2)).npu()
    x = torch.ones(3, 4, device="npu")
    module(x).sum().backward()
    expected = [p.grad.clone() for p in module.parameters()]
    module.zero_grad()
    torch._dynamo.reset()

    torch.compile(module, backend="aot_eager")(x).sum().backward()

    for parameter, gradient in zip(module.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


@pytest.mark.parametrize(
    "enter", [lambda d: torch.autocast("npu", dtype=d), lambda d: torch.npu.amp.autocast(dtype=d)]
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_picks_the_dtype(enter: Callable[[torch.dtype], object], dtype: torch.dtype) -> None:
    a = torch.ones(4, 4, device="npu")

    with enter(dtype):  # type: ignore[attr-defined]
        product, total = a @ a, (a @ a).float().sum()

    assert product.dtype == dtype
    assert total.item() == 64
    assert (a @ a).dtype == torch.float32


def test_dlpack_hands_over_the_same_memory() -> None:
    tensor = torch.zeros(3, device="npu")

    shared = torch.from_dlpack(tensor)
    shared.fill_(4)

    assert tensor.tolist() == [4, 4, 4]


def test_deep_copies_and_pickles_stay_on_the_device() -> None:
    import copy
    import pickle

    tensor = torch.arange(4, device="npu")

    for made in (copy.deepcopy(tensor), pickle.loads(pickle.dumps(tensor))):
        assert made.is_npu
        assert made.tolist() == [0, 1, 2, 3]
