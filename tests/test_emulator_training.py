"""What a training step of a transformer uses, on emulated NPU tensors: values and gradients are the CPU's."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch_npu  # noqa: F401
import transformers
from torch import nn
from torch.nn import functional

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
Compute = Callable[..., torch.Tensor]


def random(*sizes: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(sizes))
    return torch.randn(sizes, generator=generator).to(dtype)


def values_and_gradients(compute: Compute, inputs: list[torch.Tensor], device: str) -> list[torch.Tensor]:
    moved = [value.detach().to(device, copy=True) for value in inputs]
    leaves = [value.requires_grad_() for value in moved if value.is_floating_point()]
    result = compute(*moved)
    # Weights that differ from place to place, so that a misplaced gradient shows.
    weights = torch.linspace(-1, 1, result.numel()).view(result.shape).to(result)
    (result * weights).sum().backward()
    return [result.detach().cpu(), *(leaf.grad.cpu() for leaf in leaves if leaf.grad is not None)]


def same_as_on_cpu(compute: Compute, *inputs: torch.Tensor, tolerance: float = 0.0) -> None:
    expected = values_and_gradients(compute, list(inputs), "cpu")
    found = values_and_gradients(compute, list(inputs), "npu")

    assert len(found) == len(expected) >= 2
    for npu, cpu in zip(found, expected, strict=True):
        torch.testing.assert_close(npu, cpu, rtol=tolerance, atol=tolerance)


def rope(x: torch.Tensor) -> torch.Tensor:
    half = x.shape[-1] // 2
    position = torch.arange(x.shape[-2], device=x.device, dtype=torch.float32)
    frequency = 1e4 ** (-torch.arange(half, device=x.device, dtype=torch.float32) / half)
    angle = torch.outer(position, frequency)
    cos, sin = (
        torch.cat((angle, angle), -1).cos().to(x.dtype),
        torch.cat((angle, angle), -1).sin().to(x.dtype),
    )
    return x * cos + torch.cat((-x[..., half:], x[..., :half]), -1) * sin


def rms_norm(x: torch.Tensor) -> torch.Tensor:
    as_float = x.float()
    return x * torch.rsqrt(as_float.pow(2).mean(-1, keepdim=True) + 1e-6).to(x.dtype)


ONE_INPUT: dict[str, Compute] = {
    "softmax": lambda x: x.softmax(-1),
    "log_softmax": lambda x: x.log_softmax(-1),
    "softmax_in_float": lambda x: functional.softmax(x, -1, dtype=torch.float32).to(x.dtype),
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "relu": functional.relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "exp": torch.exp,
    "dropout_of_nothing": lambda x: functional.dropout(x, 0.0, training=True),
    "rms_norm_by_hand": rms_norm,
    "rope": rope,
    "mean": lambda x: x.mean(-1),
    "sum_of_squares": lambda x: x.pow(2).sum(),
    "variance": lambda x: x.var(-1, unbiased=False),
    "transpose": lambda x: x.transpose(-1, -2).contiguous(),
    "permute_view": lambda x: x.permute(2, 0, 1).reshape(8, -1),
    "split_cat": lambda x: torch.cat(x.split(4, -1)[::-1], -1),
    "chunk_multiply": lambda x: x.chunk(2, -1)[0] * x.chunk(2, -1)[1],
    "unbind_stack": lambda x: torch.stack(x.unbind(1), 0),
    "expand": lambda x: x[:, :1].expand(-1, 5, -1),
    "slice": lambda x: x[:, 1:4, ::2],
    "pad": lambda x: functional.pad(x, (1, 2), value=0.5),
    "masked_fill": lambda x: x.masked_fill(x > 0, -1.0),
    "where": lambda x: torch.where(x > 0, x, x * 0.1),
    "clamp": lambda x: x.clamp(-0.5, 0.5),
    "cumsum": lambda x: x.cumsum(1),
    "maximum": lambda x: x.amax(-1),
    "topk": lambda x: x.topk(3, -1).values,
    "sort": lambda x: x.sort(-1).values,
    "norm": lambda x: x.norm(dim=-1),
    "repeat_interleave": lambda x: x.repeat_interleave(2, 1),
    "to_float_and_back": lambda x: (x.float() * 3).to(x.dtype),
}


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", ONE_INPUT)
def test_op_and_its_gradient_equal_the_cpus(name: str, dtype: torch.dtype) -> None:
    # The vectorised CPU kernels round the tails of rows in their own way when rows lie differently.
    tolerance = 1e-6 if name in ("variance", "norm") else 0.0

    same_as_on_cpu(ONE_INPUT[name], random(3, 6, 8, dtype=dtype), tolerance=tolerance)


SEVERAL_INPUTS: dict[str, tuple[Compute, list[tuple[int, ...]]]] = {
    "linear": (functional.linear, [(4, 6, 8), (10, 8), (10,)]),
    "linear_without_bias": (functional.linear, [(4, 6, 8), (10, 8)]),
    "matmul": (torch.matmul, [(4, 6, 8), (4, 8, 5)]),
    "matmul_with_vector": (torch.matmul, [(4, 6, 8), (8,)]),
    "mm": (torch.mm, [(6, 8), (8, 5)]),
    "bmm": (torch.bmm, [(4, 6, 8), (4, 8, 5)]),
    "baddbmm": (torch.baddbmm, [(4, 6, 5), (4, 6, 8), (4, 8, 5)]),
    "addmm": (torch.addmm, [(5,), (6, 8), (8, 5)]),
    "einsum": (lambda a, b: torch.einsum("bij,bkj->bik", a, b), [(4, 6, 8), (4, 5, 8)]),
    "add": (lambda a, b: torch.add(a, b, alpha=2), [(4, 6, 8), (8,)]),
    "multiply": (torch.mul, [(4, 6, 8), (6, 1)]),
    "divide": (lambda a, b: a / (b.abs() + 1), [(4, 6, 8), (4, 6, 8)]),
    "layer_norm": (lambda x, w, b: functional.layer_norm(x, (8,), w, b), [(4, 6, 8), (8,), (8,)]),
    "rms_norm": (lambda x, w: functional.rms_norm(x, (8,), w, 1e-6), [(4, 6, 8), (8,)]),
    "swiglu": (lambda a, b: functional.silu(a) * b, [(4, 6, 8), (4, 6, 8)]),
    "weight_norm": (lambda v, g: torch._weight_norm(v, g, 0), [(4, 6), (4, 1)]),
    "mse_loss": (functional.mse_loss, [(4, 6), (4, 6)]),
    "lerp": (lambda a, b: torch.lerp(a, b, 0.3), [(4, 6), (4, 6)]),
}


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", SEVERAL_INPUTS)
def test_op_of_several_inputs_and_its_gradients_equal_the_cpus(name: str, dtype: torch.dtype) -> None:
    compute, sizes = SEVERAL_INPUTS[name]

    same_as_on_cpu(compute, *(random(*size, dtype=dtype) for size in sizes))


INDEXED: dict[str, Compute] = {
    "embedding": lambda table, index: functional.embedding(index, table),
    "embedding_with_padding": lambda table, index: functional.embedding(index, table, padding_idx=0),
    "index": lambda table, index: table[index],
    "index_select": lambda table, index: table.index_select(0, index),
    "gather": lambda table, index: table.gather(0, index.view(-1, 1).expand(-1, 3)),
    "index_put": lambda table, index: (table * 2).index_put_((index,), table[:4]),
    "index_copy": lambda table, index: (table * 2).index_copy(0, index, table[:4]),
    "index_add": lambda table, index: (table * 2).index_add(0, index, table[:4]),
    "scatter": lambda table, index: (table * 2).scatter(1, index.view(-1, 1), 1.5),
    "scatter_add": lambda table, index: (table * 2).scatter_add(
        1, index.view(-1, 1).expand(-1, 7), table[:4]
    ),
    "cross_entropy": lambda table, index: functional.cross_entropy(table[:4], index),
    "cross_entropy_sum": lambda table, index: functional.cross_entropy(table[:4], index, reduction="sum"),
    "cross_entropy_ignored": lambda table, index: functional.cross_entropy(table[:4], index, ignore_index=3),
    "cross_entropy_smoothed": lambda table, index: functional.cross_entropy(
        table[:4], index, label_smoothing=0.1
    ),
    "cross_entropy_in_float": lambda table, index: functional.cross_entropy(table[:4].float(), index),
    "nll_loss": lambda table, index: functional.nll_loss(table[:4].log_softmax(-1), index),
}  # fmt: skip


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", INDEXED)
def test_indexed_op_and_its_gradient_equal_the_cpus(name: str, dtype: torch.dtype) -> None:
    same_as_on_cpu(INDEXED[name], random(7, 7, dtype=dtype), torch.tensor([5, 0, 3, 6]))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("kind", ["plain", "causal", "bool_mask", "float_mask", "grouped"])
def test_attention_and_its_gradients_follow_the_cpu(kind: str, dtype: torch.dtype) -> None:
    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        mask = torch.ones(6, 6, dtype=torch.bool, device=query.device).tril()
        if kind == "float_mask":
            mask = torch.zeros(6, 6, dtype=query.dtype, device=query.device).masked_fill(~mask, -torch.inf)
        return functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask if "mask" in kind else None, is_causal=kind == "causal",
            enable_gqa=kind == "grouped",
        )  # fmt: skip

    heads = 2 if kind == "grouped" else 4
    inputs = [random(2, h, 6, 16, dtype=dtype) for h in (4, heads, heads)]
    # Gradients are composed of smaller ops, which round at other places than the CPU's fused kernel.
    same_as_on_cpu(
        attend, *inputs, tolerance={torch.float32: 2e-6, torch.float16: 4e-3, torch.bfloat16: 3e-2}[dtype]
    )


OPTIMIZERS: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    "sgd_foreach": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, foreach=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, foreach=False),
    "adam_foreach": lambda p: torch.optim.Adam(p, lr=0.01, foreach=True),
    "adam_amsgrad": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1, foreach=False),
    "adamw_foreach": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1, foreach=True),
    "adamw_default": lambda p: torch.optim.AdamW(p, lr=0.01),
    "adamw_capturable": lambda p: (
        torch.optim.AdamW(p, lr=torch.tensor(0.01).to(p[0]), capturable=True)
        if p[0].is_npu
        else torch.optim.AdamW(p, lr=torch.tensor(0.01))
    ),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01),
}


def trained(
    module: nn.Module, make: Callable[[list[nn.Parameter]], torch.optim.Optimizer], device: str
) -> list[torch.Tensor]:
    own = copy.deepcopy(module).to(device)
    optimizer = make(list(own.parameters()))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    batch, labels = random(5, 8).to(device), torch.tensor([0, 3, 1, 2, 2]).to(device)
    norms = []
    for _ in range(3):
        optimizer.zero_grad()
        functional.cross_entropy(own(batch), labels).backward()
        norms.append(nn.utils.clip_grad_norm_(own.parameters(), 0.5))
        optimizer.step()
        scheduler.step()
    return [*(p.detach().cpu() for p in own.parameters()), *(norm.cpu() for norm in norms)]


@pytest.fixture(scope="module")
def perceptron() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.SiLU(), nn.Linear(16, 4))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_steps_follow_the_cpus(name: str, perceptron: nn.Module) -> None:
    found, expected = (trained(perceptron, OPTIMIZERS[name], device) for device in ("npu", "cpu"))

    for npu, cpu in zip(found, expected, strict=True):
        torch.testing.assert_close(npu, cpu, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_follows_the_cpus(dtype: torch.dtype, perceptron: nn.Module) -> None:
    def step(device: str) -> list[torch.Tensor]:
        own = copy.deepcopy(perceptron).to(device)
        with torch.autocast(device, dtype=dtype):
            hidden = own[0](random(5, 8).to(device))
            loss = own(random(5, 8).to(device)).float().pow(2).mean()
        assert hidden.dtype == dtype
        loss.backward()
        return [loss.detach().cpu(), *(p.grad.cpu() for p in own.parameters())]

    for npu, cpu in zip(step("npu"), step("cpu"), strict=True):
        assert npu.dtype == cpu.dtype == torch.float32
        torch.testing.assert_close(npu, cpu, rtol=3e-2, atol=1e-3)


def test_scaler_finds_the_overflow_and_then_steps() -> None:
    parameter = nn.Parameter(torch.ones(4, device="npu"))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    scaler = torch.amp.GradScaler("npu", init_scale=4.0)
    steps = []
    for gradient in (torch.inf, 0.25):
        optimizer.zero_grad()
        scaler.scale(parameter.sum() * 0).backward()
        parameter.grad.fill_(gradient * scaler.get_scale())
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_([parameter], 100.0)
        scaler.step(optimizer)
        scaler.update()
        steps.append((parameter.tolist(), scaler.get_scale()))

    assert steps == [([1.0] * 4, 2.0), ([0.75] * 4, 2.0)]


class Block(nn.Module):
    """A decoder block and the layers around it, written out."""

    def __init__(self, hidden: int = 32, heads: int = 4, words: int = 50) -> None:
        super().__init__()
        self.heads = heads
        self.words = nn.Embedding(words, hidden)
        self.before, self.between, self.after = (nn.RMSNorm(hidden) for _ in range(3))
        self.qkv, self.out = nn.Linear(hidden, 3 * hidden, bias=False), nn.Linear(hidden, hidden, bias=False)
        self.gate_up, self.down = nn.Linear(hidden, 4 * hidden), nn.Linear(2 * hidden, hidden)
        self.dropout = nn.Dropout(0.0)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.words(ids)
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.qkv(self.before(x)).chunk(3, -1)
        )
        scores = rope(query) @ rope(key).transpose(-1, -2) / query.shape[-1] ** 0.5
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=x.device).triu(1)
        weights = scores.masked_fill(mask, -torch.inf).softmax(-1)
        x = x + self.dropout(self.out((weights @ value).transpose(1, 2).flatten(2)))
        gate, up = self.gate_up(self.between(x)).chunk(2, -1)
        x = x + self.down(functional.silu(gate) * up)
        return self.after(x) @ self.words.weight.T


def llama() -> nn.Module:
    config = transformers.LlamaConfig(
        num_hidden_layers=2, hidden_size=64, intermediate_size=128, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=50, initializer_range=0.1, bos_token_id=None, eos_token_id=None,
        pad_token_id=None, attn_implementation="eager",
    )  # fmt: skip
    return transformers.AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("make", [Block, llama])
def test_training_step_of_a_transformer_equals_the_cpus(
    make: Callable[[], nn.Module], dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    model = make().to(dtype).train()
    ids = torch.randint(50, (2, 12), generator=torch.Generator().manual_seed(1))

    def step(device: str) -> list[torch.Tensor]:
        own = copy.deepcopy(model).to(device)
        optimizer = torch.optim.AdamW(own.parameters(), lr=1e-3, eps=1e-4, foreach=True)
        result = own(ids.to(device))
        logits = result if isinstance(result, torch.Tensor) else result.logits
        loss = functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten().to(device))
        loss.backward()
        norm = nn.utils.clip_grad_norm_(own.parameters(), 1.0)
        gradients = [p.grad.cpu() for p in own.parameters()]
        optimizer.step()
        return [
            loss.detach().cpu(), logits.detach().cpu(), norm.cpu(), *gradients,
            *(p.detach().cpu() for p in own.parameters()),
        ]  # fmt: skip

    found, expected = step("npu"), step("cpu")

    assert torch.equal(found[0], expected[0])  # the loss, and with it the whole forward, to the bit
    assert torch.equal(found[1], expected[1])
    tolerance = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}[dtype]
    for npu, cpu in zip(found, expected, strict=True):
        torch.testing.assert_close(npu, cpu, rtol=tolerance, atol=tolerance)
