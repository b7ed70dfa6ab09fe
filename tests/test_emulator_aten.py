"""Aten ops on emulated NPU tensors: the CPU's results, in stream order."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
import torch_npu  # noqa: F401
import transformers
from torch import nn
from torch.nn import functional

from tests.streams import standing_still
from torch_llm_datadist import emulator

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
DELAY_S = 0.2
ENABLE = "import torch_llm_datadist.emulator as emulator; emulator.enable()\n"


def same_as_on_cpu(compute: Callable[..., object], *arguments: object) -> None:
    """Asserts that `compute` gives the CPU's bits on the NPU; arguments are moved there."""
    expected = compute(*_moved(arguments, "cpu"))
    found = compute(*_moved(arguments, "npu"))

    for cpu, npu in zip(_tensors(expected), _tensors(found), strict=True):
        assert npu.device.type == "npu"
        assert npu.dtype == cpu.dtype
        torch.testing.assert_close(npu.cpu(), cpu, rtol=0, atol=0, equal_nan=True)


def _moved(values: tuple[object, ...], device: str) -> list[object]:
    return [
        value.to(device, copy=True) if isinstance(value, torch.Tensor)
        else [item.to(device, copy=True) for item in value] if isinstance(value, list)
        else value
        for value in values
    ]  # fmt: skip


def _tensors(value: object) -> list[torch.Tensor]:
    return [value] if isinstance(value, torch.Tensor) else list(value)  # type: ignore[call-overload]


def random(*sizes: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(sizes))
    if dtype == torch.bool:
        return torch.randint(2, sizes, generator=generator).bool()
    if not dtype.is_floating_point:
        return torch.randint(-9, 9, sizes, generator=generator).to(dtype)
    return torch.randn(sizes, generator=generator).to(dtype)


@pytest.mark.parametrize("dtype", [*FLOATS, torch.int64, torch.int32, torch.bool])
@pytest.mark.parametrize("op", [torch.add, torch.mul, torch.eq, torch.lt, torch.maximum])
def test_elementwise_op_equals_cpu(op: Callable[..., torch.Tensor], dtype: torch.dtype) -> None:
    same_as_on_cpu(op, random(4, 5, dtype=dtype), random(5, dtype=dtype))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    "op",
    [
        torch.matmul,
        lambda a, b: torch.mm(a, b.contiguous()),
        lambda a, b: torch.bmm(a.expand(3, -1, -1), b.expand(3, -1, -1)),
        lambda a, b: torch.addmm(a[0, :1], a, b),
        lambda a, b: functional.linear(a, b.T),
        lambda a, b: functional.linear(a, b.T, b[0]),
    ],
)
def test_matrix_product_equals_cpu(op: Callable[..., torch.Tensor], dtype: torch.dtype) -> None:
    same_as_on_cpu(op, random(17, 33, dtype=dtype), random(40, 33, dtype=dtype).T)


UNARY = {
    "softmax": lambda x: x.softmax(-1),
    "log_softmax": lambda x: x.log_softmax(0),
    "layer_norm": lambda x: functional.layer_norm(x, (6,), x[0], x[1]),
    "rms_norm": lambda x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6),
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "cos_sin": lambda x: (x.cos(), x.sin()),
    "cumsum": lambda x: x.cumsum(1),
    "argmax": lambda x: (x.argmax(), x.argmax(-1), x.max(-1).indices),
    "topk": lambda x: x.topk(3),
    "sort": lambda x: x.sort(descending=True),
    "triangles": lambda x: (x.triu(1), x.tril(-1)),
    "sums": lambda x: (x.sum(), x.mean(), x.amax(0), x.var(-1), x.norm()),
    "wrapped_numbers": lambda x: (x + 1, 2 / x, x > 0, 1 - x, x * 0.5),
    "likes": lambda x: (torch.ones_like(x), torch.zeros_like(x), torch.full_like(x, 2.5)),
    "transposed": lambda x: (x.T.contiguous(), x.T.clone(), x[:, ::2].contiguous(), x.T.reshape(-1)),
    "dtypes": lambda x: (x.half(), x.bfloat16(), x.double(), x.long(), x.bool(), x.T.half()),
    "cat": lambda x: torch.cat([x, x[:2]], 0),
    "stack": lambda x: torch.stack([x, x], 1),
    "chunks": lambda x: x.chunk(2, -1),
    "repeat": lambda x: (x.repeat(2, 3), x.repeat_interleave(2, 0), x.expand(2, 5, 6).contiguous()),
    "flip_roll": lambda x: (x.flip(0), x.roll(1, 1)),
    "where": lambda x: (torch.where(x > 0, x, -x), x.masked_fill(x > 0, float("-inf"))),
    "clamp": lambda x: (x.clamp(-1, 1), x.clamp_min(0)),
    "in_place": lambda x: x.add_(1).mul_(2).clamp_(max=3).zero_() + x.fill_(4),
    "slices_written": lambda x: _write_slices(x),
    "any_all": lambda x: ((x > 0).any(), (x > 0).all(-1)),
    "vector_product": lambda x: (x[0] @ x.T, x @ x[0], x[0] @ x[1]),
    "metadata_in_place": lambda x: x.clone().unsqueeze_(0).transpose_(0, 2).squeeze_(2).t_(),
    "losses": lambda x: (functional.mse_loss(x, -x), functional.huber_loss(x, -x, reduction="sum")),
    "rotate_half": lambda x: torch.cat((-x[..., 3:], x[..., :3]), -1),
}  # fmt: skip


def _write_slices(x: torch.Tensor) -> torch.Tensor:
    x[1:3] = 7
    x[:, 1] = x[:, 0]
    x[x > 1] = 0
    return x


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", UNARY)
def test_op_equals_cpu(name: str, dtype: torch.dtype) -> None:
    same_as_on_cpu(UNARY[name], random(5, 6, dtype=dtype))


INDEXED = {
    "embedding": lambda x, i: functional.embedding(i, x),
    "index_select": lambda x, i: x.index_select(0, i),
    "index": lambda x, i: (x[i], x[i, i], x[:, i[:3]]),
    "index_by_mask": lambda x, i: x[x > 0],
    "masked_select": lambda x, i: x.masked_select(x > 0),
    "gather": lambda x, i: x.gather(0, i.view(-1, 1).expand(-1, 3)),
    "index_copy_": lambda x, i: x.index_copy_(0, i, torch.ones_like(x[: len(i)])),
    "index_add_": lambda x, i: x.index_add_(0, i, torch.ones_like(x[: len(i)])),
    "index_put_": lambda x, i: x.index_put_((i,), torch.ones_like(x[0])),
    "index_put_by_mask": lambda x, i: x.index_put_((x > 0,), torch.zeros_like(x[0, 0])),
    "scatter_": lambda x, i: x.scatter_(0, i.view(-1, 1).expand(-1, 3), 1.5),
    "nonzero": lambda x, i: (x > 0).nonzero(),
    "unique": lambda x, i: i.unique(),
    "one_hot": lambda x, i: functional.one_hot(i, 8),
}


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", INDEXED)
def test_indexed_op_equals_cpu(name: str, dtype: torch.dtype) -> None:
    same_as_on_cpu(INDEXED[name], random(7, 7, dtype=dtype), torch.tensor([5, 0, 3, 6]))


@pytest.mark.parametrize(
    "factory",
    [
        lambda device: torch.arange(10, device=device),
        lambda device: torch.arange(0, 1, 0.25, device=device, dtype=torch.float16),
        lambda device: torch.zeros(3, 4, device=device, dtype=torch.bfloat16),
        lambda device: torch.ones(0, 4, device=device),
        lambda device: torch.full((2, 2), float("-inf"), device=device),
        lambda device: torch.eye(3, device=device),
        lambda device: torch.linspace(0, 1, 5, device=device),
        lambda device: torch.tensor([[1, 2], [3, 4]], device=device),
        lambda device: torch.tril_indices(3, 3, device=device),
        lambda device: torch.scalar_tensor(2.5, device=device),
    ],
)
def test_factory_equals_cpu(factory: Callable[[str], torch.Tensor]) -> None:
    found = factory("npu")

    assert found.device.type == "npu"
    torch.testing.assert_close(found.cpu(), factory("cpu"), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_attention_equals_cpu(dtype: torch.dtype, is_causal: bool, kv_heads: int) -> None:
    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return functional.scaled_dot_product_attention(
            query, key, value, is_causal=is_causal, enable_gqa=kv_heads != 4
        )

    kv_size = (2, kv_heads, 9, 16)
    same_as_on_cpu(
        attend, random(2, 4, 9, 16, dtype=dtype), random(*kv_size, dtype=dtype), random(*kv_size, dtype=dtype)
    )


@pytest.mark.parametrize("dtype", FLOATS)
def test_attention_with_bool_mask_equals_cpu(dtype: torch.dtype) -> None:
    def attend(query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return functional.scaled_dot_product_attention(query, key, key, attn_mask=mask)

    mask = torch.ones(1, 1, 3, 9, dtype=torch.bool).tril(6)
    same_as_on_cpu(attend, random(2, 4, 3, 16, dtype=dtype), random(2, 4, 9, 16, dtype=dtype), mask)


def test_out_argument_is_resized_and_written() -> None:
    out = torch.empty(0, device="npu")

    torch.add(torch.ones(3, device="npu"), 1, out=out)

    assert out.tolist() == [2, 2, 2]


@pytest.mark.parametrize("sizes", [(), (0,), (3,), (2, 0, 3)])
def test_tensor_comes_back_from_the_device(sizes: tuple[int, ...]) -> None:
    tensor = random(*sizes)

    assert torch.equal(tensor.to("npu").cpu(), tensor)


@pytest.mark.parametrize("dtype", [*FLOATS, torch.int64, torch.uint8, torch.bool])
def test_copy_converts_dtypes_and_strides_both_ways(dtype: torch.dtype) -> None:
    source = random(6, 4)
    on_npu = torch.empty(4, 6, device="npu", dtype=dtype)
    on_cpu = torch.empty(6, 4)

    on_npu.copy_(source.T)
    on_cpu.copy_(on_npu.T)

    torch.testing.assert_close(on_cpu, source.to(dtype).float(), rtol=0, atol=0)


def test_copy_between_devices_converts() -> None:
    source = random(6, 4).to("npu:0")

    moved = source.T.to("npu:1", torch.float16)

    assert moved.device.index == 1
    torch.testing.assert_close(moved.cpu(), source.cpu().T.half(), rtol=0, atol=0)


def test_pinned_copy_out_is_right_after_synchronize() -> None:
    tensor = torch.arange(100, device="npu")

    pinned = tensor.to("cpu", non_blocking=True)
    torch.npu.synchronize()

    assert torch.equal(pinned, torch.arange(100))


def test_plain_values_come_out_of_tensors() -> None:
    tensor = torch.tensor([1.5, 2.5], device="npu")

    assert tensor[1].item() == 2.5
    assert tensor.tolist() == [1.5, 2.5]
    assert bool((tensor > 1).all())
    assert torch.equal(tensor, tensor.clone())
    assert not torch.equal(tensor, tensor + 1)
    assert "2.5000" in repr(tensor)


def test_storage_of_views_is_shared() -> None:
    tensor = torch.zeros(4, 4, device="npu")

    tensor.view(-1)[5].fill_(1)
    tensor[2].add_(2)

    assert tensor.cpu().sum() == 9


def test_overlapping_in_place_op_is_refused_as_on_cpu() -> None:
    tensor = torch.zeros(1, device="npu").expand(4)

    with pytest.raises(RuntimeError, match="more than one element of the written-to tensor"):
        tensor.add_(1)


def test_wrong_shapes_raise_at_the_call_with_the_cpus_message() -> None:
    with pytest.raises(RuntimeError, match="must match the size"):
        torch.add(torch.ones(3, device="npu"), torch.ones(4, device="npu"))


@pytest.mark.parametrize(
    "mix",
    [
        lambda npu, other: npu + other,
        lambda npu, other: other.mul_(npu),
        lambda npu, other: torch.cat([npu, other]),
        lambda npu, other: npu @ other,
        lambda npu, other: torch.where(npu > 0, npu, other),
        lambda npu, other: torch.add(npu, 1, out=other),
        lambda npu, other: functional.embedding(other.long(), npu.view(3, 1)),
    ],
)
@pytest.mark.parametrize("device", ["cpu", "npu:1"])
def test_tensors_of_two_devices_are_refused_as_on_an_npu(
    mix: Callable[[torch.Tensor, torch.Tensor], object], device: str
) -> None:
    with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
        mix(torch.ones(3, device="npu:0"), torch.ones(3, device=device))


def test_what_may_lie_on_the_host_may() -> None:
    tensor = torch.arange(4.0, device="npu")

    assert (tensor + torch.tensor(2.0)).tolist() == [2, 3, 4, 5]
    assert tensor[torch.tensor([3, 0])].tolist() == [3, 0]
    assert tensor.index_put_((torch.tensor([1]),), torch.tensor(9.0)).tolist() == [0, 9, 2, 3]
    assert torch.where(tensor > 2, tensor, torch.tensor(0.0)).tolist() == [0, 9, 0, 3]


def test_op_over_lists_takes_tensors_of_several_devices_one_by_one() -> None:
    lists = [torch.ones(2, device=device) for device in ("npu:0", "npu:1", "cpu")]

    torch._foreach_add_(lists, 2)

    assert [tensor.tolist() for tensor in lists] == [[3, 3]] * 3


def test_op_without_cpu_kernel_is_refused_by_name() -> None:
    with pytest.raises(NotImplementedError, match=r"_thnn_fused_lstm_cell.*not available on an emulated NPU"):
        torch.ops.aten._thnn_fused_lstm_cell(*(torch.ones(1, 4, device="npu") for _ in range(3)))


def test_random_numbers_follow_the_seed() -> None:
    def draw() -> list[torch.Tensor]:
        return [
            torch.rand(50, device="npu"),
            torch.randn(50, device="npu"),
            torch.randint(10**6, (50,), device="npu"),
            torch.randperm(50, device="npu"),
            functional.dropout(torch.ones(50, device="npu"), 0.5),
            torch.empty(50, device="npu").normal_(generator=torch.Generator("npu").manual_seed(3)),
        ]

    torch.npu.manual_seed(7)
    first = [tensor.cpu() for tensor in draw()]
    other = [tensor.cpu() for tensor in draw()]
    torch.npu.manual_seed(7)
    again = [tensor.cpu() for tensor in draw()]

    assert all(map(torch.equal, first, again))
    assert not any(map(torch.equal, first[:-1], other[:-1]))


def test_training_step_equals_cpu() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, 4))
    batch, labels = random(5, 8), torch.tensor([0, 3, 1, 2, 2])

    def trained(device: str) -> list[torch.Tensor]:
        own = copy.deepcopy(model).to(device)
        optimizer = torch.optim.AdamW(own.parameters(), lr=0.01)
        for _ in range(3):
            optimizer.zero_grad()
            functional.cross_entropy(own(batch.to(device)), labels.to(device)).backward()
            optimizer.step()
        return [parameter.detach().cpu() for parameter in own.parameters()]

    for npu, cpu in zip(trained("npu"), trained("cpu"), strict=True):
        torch.testing.assert_close(npu, cpu, rtol=1e-6, atol=1e-7)


def test_attention_has_gradients() -> None:
    def gradients(device: str) -> list[torch.Tensor]:
        query, key, value = (random(1, 2, 5 + i, 8).to(device).requires_grad_() for i in (0, 1, 1))
        functional.scaled_dot_product_attention(query, key, value).sum().backward()
        return [tensor.grad.cpu() for tensor in (query, key, value)]

    for npu, cpu in zip(gradients("npu"), gradients("cpu"), strict=True):
        torch.testing.assert_close(npu, cpu)


@pytest.mark.parametrize("dtype", FLOATS)
def test_llama_gives_the_cpus_logits_and_tokens(dtype: torch.dtype) -> None:
    config = transformers.LlamaConfig(
        num_hidden_layers=2, hidden_size=64, intermediate_size=128, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=256, initializer_range=0.1,
        bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    prompt = torch.randint(256, (1, 33), generator=torch.Generator().manual_seed(0))

    def generated(device: str) -> transformers.generation.GenerateDecoderOnlyOutput:
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).eval().to(device)
        return model.generate(
            prompt.to(device),
            max_new_tokens=8,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )

    cpu, npu = generated("cpu"), generated("npu")

    assert torch.equal(npu.sequences.cpu(), cpu.sequences)
    assert all(
        torch.equal(on_npu.cpu(), on_cpu) for on_npu, on_cpu in zip(npu.logits, cpu.logits, strict=True)
    )


# Stream order


def test_op_returns_before_it_ran_and_runs_after_what_is_before_it() -> None:
    source = torch.zeros(4, device="npu")
    torch.npu.synchronize()

    with standing_still():
        source.fill_(3)
        result = source * 2
        assert not torch.npu.current_stream().query()

    assert result.tolist() == [6, 6, 6, 6]


@pytest.mark.parametrize(
    "read",
    [
        lambda tensor: tensor.nonzero().flatten().tolist(),
        lambda tensor: tensor[tensor > 0].long().mul(0).add(torch.arange(4, device="npu")).tolist(),
        lambda tensor: [i for i in range(4) if tensor[i].item() == 3],
        lambda tensor: list(range(4)) if torch.equal(tensor, torch.full((4,), 3.0, device="npu")) else [],
    ],
)
def test_op_that_needs_data_waits_for_its_stream(read: Callable[[torch.Tensor], list[int]]) -> None:
    tensor = torch.zeros(4, device="npu")

    emulator.delay_stream(DELAY_S)
    tensor.fill_(3)

    assert read(tensor) == [0, 1, 2, 3]


@pytest.mark.races_on_purpose("the first read has no order")
def test_missing_wait_between_streams_reads_the_old_value_and_an_event_mends_it() -> None:
    tensor = torch.zeros(4, device="npu")
    side = torch.npu.Stream()
    torch.npu.synchronize()

    with standing_still():
        tensor.fill_(3)
        written = torch.npu.current_stream().record_event()
        with torch.npu.stream(side):
            too_early = tensor.clone()
            read = side.record_event()
            side.wait_event(written)
            in_time = tensor.clone()
        read.synchronize()
    side.synchronize()

    assert too_early.tolist() == [0, 0, 0, 0]
    assert in_time.tolist() == [3, 3, 3, 3]


def test_host_tensor_changed_after_the_call_does_not_change_the_result() -> None:
    index = torch.tensor([1, 2])
    source = torch.arange(4.0, device="npu")

    emulator.delay_stream(DELAY_S)
    result = source[index]
    index.zero_()

    assert result.tolist() == [1, 2]


def test_temporaries_are_reused_in_stream_order() -> None:
    emulator.delay_stream(DELAY_S)
    total = torch.zeros(1000, device="npu")
    for i in range(50):
        total += torch.full((1000,), float(i), device="npu").mul(2)

    assert torch.all(total.cpu() == 2450)


def test_memory_freed_while_the_stream_is_busy_can_be_returned_to_the_device() -> None:
    emulator.delay_stream(DELAY_S)
    for _ in range(3):
        (torch.ones(1 << 20, device="npu") * 2).add_(1)
    torch.npu.empty_cache()

    assert torch.ones(4, device="npu").tolist() == [1, 1, 1, 1]


def test_kernel_that_fails_says_so_and_fails_its_stream() -> None:
    # In a process of its own: as on hardware, the device is of no use afterwards.
    code = """
import torch, torch_npu
row = torch.embedding(torch.ones(4, 2, device="npu"), torch.tensor([99], device="npu"))
print("returned")
torch.npu.synchronize()
"""

    done = subprocess.run([sys.executable, "-c", ENABLE + code], capture_output=True, text=True, timeout=60)

    assert done.returncode != 0
    assert done.stdout == "returned\n"
    assert "aten::embedding failed on the device: index out of range in self" in done.stderr
    assert "507035" in done.stderr
