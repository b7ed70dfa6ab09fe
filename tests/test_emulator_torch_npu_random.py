"""Random numbers: state, seeds, generators."""

from __future__ import annotations

import pytest
import torch
import torch_npu  # noqa: F401


def draw(**kwargs: object) -> torch.Tensor:
    return torch.randn(20, device="npu", **kwargs).cpu()  # type: ignore[call-overload]


def test_state_brings_the_numbers_back() -> None:
    state = torch.npu.get_rng_state()
    first, second = draw(), draw()

    torch.npu.set_rng_state(state)

    assert torch.equal(draw(), first)
    assert not torch.equal(first, second)


def test_states_of_all_devices_come_back() -> None:
    states = torch.npu.get_rng_state_all()
    first = [torch.rand(4, device=f"npu:{i}").cpu() for i in (0, 1)]

    torch.npu.set_rng_state_all(states)

    assert all(torch.equal(torch.rand(4, device=f"npu:{i}").cpu(), first[i]) for i in (0, 1))


@pytest.mark.parametrize("seed", [torch.manual_seed, torch.npu.manual_seed, torch.npu.manual_seed_all])
def test_each_way_to_seed_gives_the_same_numbers(seed: object) -> None:
    torch.npu.manual_seed(11)
    expected = draw()

    seed(11)  # type: ignore[operator]

    assert torch.npu.initial_seed() == 11
    assert torch.equal(draw(), expected)


def test_seed_of_the_moment_differs() -> None:
    torch.npu.seed()
    first = draw()
    torch.npu.seed_all()

    assert not torch.equal(draw(), first)


def test_generators_go_their_own_ways() -> None:
    one, other = (torch.Generator("npu").manual_seed(3) for _ in range(2))

    first = draw(generator=one)
    state = one.get_state()
    second = draw(generator=one)
    one.set_state(state)

    assert not torch.equal(first, second)
    assert torch.equal(draw(generator=other), first)
    assert torch.equal(draw(generator=one), second)
    assert torch.equal(draw(generator=one.clone_state()), draw(generator=one))


def test_fork_leaves_the_state_alone() -> None:
    torch.npu.manual_seed(1)
    with torch.random.fork_rng(devices=[0], device_type="npu"):
        inside = draw()

    assert torch.equal(draw(), inside)


def test_host_and_device_draw_from_different_states() -> None:
    torch.manual_seed(5)
    expected = torch.rand(5)
    torch.manual_seed(5)

    draw()

    assert torch.equal(torch.rand(5), expected)


def test_generator_of_the_host_is_refused_for_a_device_tensor() -> None:
    with pytest.raises(RuntimeError, match="Expected a 'npu' device type for generator but found 'cpu'"):
        torch.rand(3, device="npu", generator=torch.Generator())


@pytest.mark.parametrize(
    ("numbers", "mean", "deviation"),
    [
        (lambda: torch.rand(20000, device="npu"), 0.5, 12**-0.5),
        (lambda: torch.randn(20000, device="npu"), 0.0, 1.0),
        (lambda: torch.empty(20000, device="npu").bernoulli_(0.3), 0.3, 0.21**0.5),
        (lambda: torch.empty(20000, device="npu").exponential_(2), 0.5, 0.5),
        (lambda: torch.randint(0, 11, (20000,), device="npu").float(), 5.0, 10**0.5),
    ],
)
def test_distribution_is_the_right_one(numbers: object, mean: float, deviation: float) -> None:
    torch.npu.manual_seed(0)

    found = numbers().cpu()  # type: ignore[operator]

    assert found.mean().item() == pytest.approx(mean, abs=0.05)
    assert found.std().item() == pytest.approx(deviation, abs=0.05)
