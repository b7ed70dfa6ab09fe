"""checksum_blocks, against the same sum of Python integers."""

from __future__ import annotations

import pytest
import torch

from torch_llm_datadist import LLMException, ops

BASE = 6364136223846793005
DEVICES = ["cpu", "npu:0"]
every_device = pytest.mark.parametrize("device", DEVICES)


def reference(block: torch.Tensor) -> int:
    data = bytes(block.reshape(-1).view(torch.uint8).tolist())
    size = 4 if len(data) % 4 == 0 else 1
    words = [
        int.from_bytes(data[i : i + size], "little", signed=size == 4) for i in range(0, len(data), size)
    ]
    total = sum(word * pow(BASE, i, 2**64) for i, word in enumerate(words)) % 2**64
    return total - 2**64 if total >= 2**63 else total


def random_cache(shape: list[int], dtype: torch.dtype, device: str) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    size = torch.Size(shape).numel() * dtype.itemsize
    tensors = [torch.randint(0, 256, (size,), dtype=torch.uint8, generator=generator) for _ in range(2)]
    return [tensor.view(dtype).view(shape).to(device) for tensor in tensors]


@every_device
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [([5, 16, 2, 8], torch.float16), ([5, 3], torch.int8), ([5, 7], torch.float32), ([5], torch.int64)],
)
def test_checksum_is_the_sum_of_words_times_powers(device: str, shape: list[int], dtype: torch.dtype) -> None:
    cache = random_cache(shape, dtype, device)

    sums = ops.checksum_blocks(cache, torch.tensor([4, 0, -1, 2, 2]))

    assert sums.dtype == torch.int64
    assert str(sums.device) == device
    for t, tensor in enumerate(cache):
        expected = [0 if b < 0 else reference(tensor.cpu()[b]) for b in (4, 0, -1, 2, 2)]
        assert sums[t].tolist() == expected


@every_device
def test_checksum_finds_each_flipped_bit_and_each_swap(device: str) -> None:
    (tensor, _) = random_cache([1, 64], torch.uint8, "cpu")
    variants = [tensor.clone() for _ in range(64 * 8)]
    for i, variant in enumerate(variants):
        variant[0, i // 8] ^= 1 << i % 8
    words = tensor.view(torch.int32)
    for i in range(16):
        for j in range(i):
            swapped = words.clone()
            swapped[0, [i, j]] = swapped[0, [j, i]]
            variants.append(swapped.view(torch.uint8))
    cache = torch.cat([tensor, *variants]).to(device)

    sums = ops.checksum_blocks([cache], torch.arange(len(cache)))[0].tolist()

    assert len(set(sums)) == len(sums)


@every_device
def test_checksum_does_a_large_cache_in_pieces(device: str) -> None:
    cache = torch.arange(5 * (3 << 20), dtype=torch.int32).view(5, -1).to(device)  # 12 MiB a block

    sums = ops.checksum_blocks([cache], torch.tensor([3, 1, 4, 0, 2]))

    each = [int(ops.checksum_blocks([cache], torch.tensor([b]))[0, 0]) for b in (3, 1, 4, 0, 2)]
    assert sums[0].tolist() == each
    assert len(set(each)) == 5


def test_checksum_sees_what_its_stream_has_written() -> None:
    cache = torch.zeros(2, 1 << 16, dtype=torch.int32, device="npu:0")
    ids = torch.tensor([0, 1], device="npu:0")
    stream = torch.npu.Stream()

    with torch.npu.stream(stream):
        cache[1].fill_(7)
        sums = ops.checksum_blocks([cache], ids)
        cache[1].fill_(9)

    stream.synchronize()
    assert sums[0].tolist() == [0, reference(torch.full((1 << 16,), 7, dtype=torch.int32))]


@every_device
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_checksum_is_one_op_of_a_compiled_function(device: str, backend: str) -> None:
    torch._dynamo.reset()
    cache = random_cache([4, 32], torch.float16, device)
    ids = torch.tensor([1, -1, 3]).to(device)

    def function(status: torch.Tensor) -> torch.Tensor:
        return ops.checksum_blocks(cache, ids) + status

    compiled = torch.compile(function, fullgraph=True, backend=backend)
    zero = torch.zeros(1, dtype=torch.int64, device=device)

    assert compiled(zero).equal(function(zero))


@every_device
def test_checksum_passes_opcheck(device: str) -> None:
    cache = random_cache([4, 32], torch.float16, device)
    torch.library.opcheck(
        torch.ops.torch_llm_datadist.checksum_blocks.default, (cache, torch.tensor([1, -1]))
    )


@every_device
def test_checksum_has_a_fake_that_is_true(device: str) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    cache = random_cache([4, 32], torch.float16, device)
    ids = torch.tensor([1, 3])
    real = ops.checksum_blocks(cache, ids)
    with FakeTensorMode() as mode:
        fake = ops.checksum_blocks([mode.from_tensor(t) for t in cache], mode.from_tensor(ids))
    assert (fake.shape, fake.dtype, fake.device) == (real.shape, real.dtype, real.device)


@pytest.fixture
def tensor() -> torch.Tensor:
    return torch.zeros(4, 8, dtype=torch.int32)


def test_checksum_refuses_what_is_no_cache(tensor: torch.Tensor) -> None:
    ids = torch.tensor([0])
    for cache, blocks, words in (
        ([], ids, "cache is an empty list"),
        ([tensor.t()], ids, "not contiguous"),
        ([tensor, tensor[:0]], ids, r"cache\[1\] is of 2 dimensions and 0 elements"),
        ([tensor, tensor.to("npu:0")], ids, r"cache\[1\].* on npu:0"),
        ([tensor], ids.int(), "one-dimensional int64 tensor on cpu"),
        ([tensor], ids[None], "2 dimensions"),
        ([tensor], torch.tensor([0, 4]), r"blocks\[1\] = 4 is outside the cache, which has 4 blocks"),
        ([tensor], torch.tensor([-2]), r"blocks\[0\] = -2 is outside"),
    ):
        with pytest.raises(LLMException, match=words):
            ops.checksum_blocks(cache, blocks)
