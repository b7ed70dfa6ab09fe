"""Every op passes torch.library.opcheck and stays in what torch.export makes of it; ops that are handed a
compiler's copy of a cache refuse.
"""

from __future__ import annotations

import pytest
import torch
from torch.testing._internal.optests import generate_tests

import torch_llm_datadist as datadist
from tests.paged_forwards import BLOCK_SIZE, LAYERS, ROW, Side
from torch_llm_datadist import ops

NAMESPACE = torch.ops.torch_llm_datadist
WHOLE_CACHE = ["push_blocks", "pull_blocks", "push_cache", "pull_cache"]
IN_PLACE = ("test_schema", "test_autograd_registration", "test_faketensor")


class Ends:
    """Two linked instances with blocks caches and contiguous ones."""

    def __init__(self) -> None:
        self.here, self.there = Side(1, 0), Side(2, 1)
        self.here.link(self.there)
        self.entries = [self._contiguous(side) for side in (self.here, self.there)]
        self.link = self.here.datadist.link_id(2)
        self.there.binding.bind(())
        self.here.binding.bind(())

    def _contiguous(self, side: Side) -> datadist.Cache:
        tensors = [torch.zeros(2, 16, device=side.device) for _ in range(2)]
        desc = datadist.CacheDesc(2, [2, 16], datadist.DataType.DT_FLOAT)
        return side.datadist.cache_manager.register_cache(desc, tensors)

    def arguments(self, op: str) -> tuple:
        side = self.here
        status, blocks = side.status, list(side.cache.tensors)
        ids = torch.tensor([1, -1], dtype=torch.int64)
        none = torch.empty(0, dtype=torch.int64)
        entries, peer = list(self.entries[0].tensors), self.entries[1].cache_id
        rows = torch.randn(3, *ROW, device=side.device)
        slots = torch.tensor([5, 2, 40]).to(side.device)
        table = torch.tensor([[3, 1, -1]]).to(side.device)
        whole = (0, 0, -1, 2, 5000, True, 0)  # layers, tensors per layer, deadline, hold_stream, waiter
        handle, binding = side.cache.handle, side.binding.id
        return {
            "push_blocks": (status, blocks, ids, ids, self.link, 0, *whole),
            "pull_blocks": (status, blocks, ids, ids, self.link, 0, *whole),
            "push_cache": (status, entries, none, self.link, peer, 0, 1, -1, *whole),
            "pull_cache": (status, entries, none, self.link, peer, 0, 1, -1, *whole),
            "copy_cache": (status, entries, [tensor.clone() for tensor in entries], 1, 0, 0, -1),
            "copy_blocks": (status, blocks, ids, torch.tensor([2, -1])),
            "swap_blocks": (status, [tensor.cpu() for tensor in blocks], blocks, ids, ids),
            "push_layer": (status, rows, 1, binding),
            "wait_layer": (status, rows, 1, binding),
            "finish": (status, rows, binding),
            "store_layer": (status, rows, rows, slots, 1, handle),
            "read_layer": (status, rows, rows, table, BLOCK_SIZE, 1, handle),
            "checksum_blocks": (blocks, torch.tensor([1, 3, -1]).to(side.device)),
            "publish": (rows, side.cache.cache_id, self.link, 0, 2, 1000),
        }[op]


ALL = ["copy_cache", "copy_blocks", "swap_blocks", "push_layer", "wait_layer", "finish", "store_layer",
       "read_layer", "checksum_blocks", *WHOLE_CACHE]  # fmt: skip


@pytest.fixture(scope="module")
def ends():
    made = Ends()
    yield made
    made.here.datadist.finalize()
    made.there.datadist.finalize()


def test_all_ops_are_checked():
    names = [name.split("::") for name in torch._C._dispatch_get_all_op_names()]
    registered = {name for namespace, name in names if namespace == "torch_llm_datadist"}

    assert registered == {*ALL, "publish"}  # whose ticket is a value of one request, so no graph has it


def test_publish_has_a_schema_that_holds(ends):
    torch.library.opcheck(
        NAMESPACE.publish.default,
        ends.arguments("publish"),
        test_utils=("test_schema", "test_autograd_registration"),
    )


def test_publish_refuses_to_be_a_part_of_a_graph(ends):
    compiled = torch.compile(NAMESPACE.publish.default, backend="eager", fullgraph=True)

    with pytest.raises(Exception, match="cannot be a part of a graph"):
        compiled(torch.ones(2, device="npu:0"), 1, ends.link, 0, 2, 1000)


@pytest.mark.parametrize("op", [op for op in ALL if op not in WHOLE_CACHE])
def test_op_passes_opcheck(ends, op):
    torch.library.opcheck(getattr(NAMESPACE, op).default, ends.arguments(op))

    assert ends.here.status.item() == 0


@pytest.mark.parametrize("op", WHOLE_CACHE)
def test_op_on_a_registered_cache_passes_opcheck_where_it_leaves_the_cache_in_its_place(
    ends, op, monkeypatch
):
    monkeypatch.setattr(generate_tests, "deepcopy_tensors", lambda inputs: inputs)

    torch.library.opcheck(getattr(NAMESPACE, op).default, ends.arguments(op), test_utils=IN_PLACE)

    assert ends.here.status.item() == 0


@pytest.mark.parametrize("op", WHOLE_CACHE)
def test_op_that_is_handed_a_compilers_copy_refuses_and_names_the_hidden_style(ends, op):
    compiled = torch.compile(getattr(NAMESPACE, op).default, backend="aot_eager", fullgraph=True)

    with pytest.raises(datadist.LLMException, match="hidden style"):
        compiled(*ends.arguments(op))


class Forward(torch.nn.Module):
    """One op and a kernel before and behind it."""

    def __init__(self, op: str, constants: tuple) -> None:
        super().__init__()
        self.op = getattr(NAMESPACE, op).default
        self.constants = constants

    def forward(self, x, tensors):
        tensors = iter(tensors)
        y = x * 2
        self.op(*[next(tensors) if each is None else each for each in self.constants])
        return y + 1


@pytest.mark.parametrize("op", ALL)
def test_export_keeps_the_op(ends, op):
    arguments = ends.arguments(op)
    is_tensor = [isinstance(a, (torch.Tensor, list)) for a in arguments]
    constants = tuple(None if t else a for a, t in zip(arguments, is_tensor, strict=True))
    tensors = [a for a, t in zip(arguments, is_tensor, strict=True) if t]

    exported = torch.export.export(Forward(op, constants), (torch.ones(2, device="npu:0"), tensors))

    for program in (exported, exported.run_decompositions()):
        in_graph = [str(n.target) + str(n.args[:1]) for n in program.graph.nodes if n.op == "call_function"]
        assert sum(f"torch_llm_datadist.{op}" in each for each in in_graph) == 1, in_graph


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer": LAYERS}, f"layer {LAYERS} of 2 tensors each; the cache has {2 * LAYERS} tensors"),
        ({"cache": 10**6}, "there is no paged cache 1000000"),
        ({"keys": torch.zeros(3, 2, 5)}, r"the shape of keys is \[3, 2, 5\].*rows of \[2, 4\]"),
        ({"values": torch.zeros(3, *ROW, dtype=torch.float16)}, "values is Half"),
        ({"slots": torch.zeros(2, dtype=torch.int64)}, r"slots is \[2\], and of keys \[3, 2, 4\]"),
        ({"slots": torch.zeros(3, dtype=torch.int32)}, "slots is Int"),
        ({"status": torch.zeros(2, dtype=torch.int32)}, "status is Int with 2 elements"),
    ],
)
def test_store_layer_says_what_does_not_fit(ends, change, message):
    status, keys, values, slots, layer, cache = ends.arguments("store_layer")
    good = {"status": status, "keys": keys, "values": values, "slots": slots, "layer": layer, "cache": cache}
    change = {k: v.to("npu:0") if isinstance(v, torch.Tensor) else v for k, v in change.items()}

    with pytest.raises(datadist.LLMException, match=message):
        ops.store_layer(**{**good, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"block_size": 3}, f"block_size is 3, expected {BLOCK_SIZE}, the tokens"),
        ({"block_table": torch.zeros(1, 1, 1, dtype=torch.int64)}, "block_table is of 3 dimensions"),
        ({"block_table": torch.zeros(1)}, "block_table is Float"),
        ({"layer": -1}, "layer -1"),
    ],
)
def test_read_layer_says_what_does_not_fit(ends, change, message):
    status, keys, values, table, block_size, layer, cache = ends.arguments("read_layer")
    good = {"block_table": table, "block_size": block_size, "layer": layer, "cache": cache}
    change = {k: v.to("npu:0") if isinstance(v, torch.Tensor) else v for k, v in change.items()}

    with pytest.raises(datadist.LLMException, match=message):
        ops.read_layer(status, keys, values, **{**good, **change})


def test_store_and_read_of_a_cache_with_one_tensor_per_layer(ends):
    side = ends.here
    status, keys, _, slots, _, cache = ends.arguments("store_layer")
    table = torch.tensor([10, 1, 0]).to(side.device)

    ops.store_layer(status, keys, None, slots, layer=5, cache=cache)
    found, nothing = ops.read_layer(status, keys, None, table, block_size=BLOCK_SIZE, layer=5, cache=cache)

    assert nothing.numel() == 0
    assert torch.equal(found.cpu(), side.tensors[5][table].flatten(0, 1).cpu())
    assert torch.equal(side.tensors[5].flatten(0, 1)[slots].cpu(), keys.cpu())


def test_store_of_no_token_is_no_error(ends):
    status, keys, values, slots, layer, cache = ends.arguments("store_layer")

    ops.store_layer(status, keys[:0], values[:0], slots[:0], layer=layer, cache=cache)


def test_store_layer_keeps_the_cache_out_of_autograd(ends):
    status, keys, values, slots, layer, cache = ends.arguments("store_layer")

    ops.store_layer(status, keys.requires_grad_(), values, slots, layer=layer, cache=cache)

    assert not ends.here.tensors[2 * layer].requires_grad


def test_an_unregistered_cache_is_not_found(ends):
    side = ends.there
    tensors = [torch.zeros(2, 2, 4, device=side.device) for _ in range(2)]
    desc = datadist.CacheDesc(2, [2, 2, 4], datadist.DataType.DT_FLOAT)
    cache = side.datadist.cache_manager.register_blocks_cache(desc, tensors)
    rows, slots = torch.ones(1, 4, device=side.device), torch.zeros(1, dtype=torch.int64, device=side.device)
    ops.store_layer(side.status, rows, rows, slots, layer=0, cache=cache.handle)

    side.datadist.cache_manager.unregister_cache(cache.cache_id)

    with pytest.raises(datadist.LLMException, match=f"no paged cache {cache.handle}; it was closed or freed"):
        ops.store_layer(side.status, rows, rows, slots, layer=0, cache=cache.handle)


@pytest.mark.parametrize(
    "op", ["copy_cache", "copy_blocks", "swap_blocks", "publish", "checksum_blocks", *WHOLE_CACHE]
)
def test_an_op_that_reads_host_values_raises_while_its_stream_captures(ends, op):
    arguments = ends.arguments(op)
    if op == "checksum_blocks":
        arguments = (arguments[0], arguments[1].cpu())
    if op == "swap_blocks":
        arguments = (arguments[0], arguments[2], arguments[2], *arguments[3:])
    torch.npu.set_device(0)
    stream = torch.npu.Stream(0)  # the default one for captures may be of another device

    with (
        pytest.raises(datadist.LLMException, match=r"binding\.bind"),
        torch.npu.graph(torch.npu.NPUGraph(), stream=stream),
    ):
        getattr(NAMESPACE, op).default(*arguments)
