"""Host cost of each op: from its call to its return, beside an op that does nothing.

    python -m torch_llm_datadist run -m benchmarks.bench_dispatch [--calls N] [--check] [--json FILE]

"empty" is a C++ op of the same schema that queues a handler without a body. It is called with the same
arguments beside each call of ours, before it and behind it in turn, so that both meet the same state of the
machine. Ops are called as what is registered with torch; "by its function" is the documented Python function
in front, which spares the caller the defaults. "on its core" is the same difference in processor time of the
calling thread alone. "custom_op" is an op in Python, without a body. Batch follows batch of all of them in
turn. What the device does is not in it: the streams are drained between two batches, and emulated devices,
whose threads would take turns with the caller on the same cores, are kept busy with nothing meanwhile. With
``TASK_QUEUE_ENABLE=1``, torch_npu's default, handlers run on a thread of its own.

The ops that move blocks to a peer, or from one, come first. ``store_layer``, ``read_layer`` and
``checksum_blocks`` are made of aten ops, and cost what those cost. "100 blocks" are listed at random, and no
two of them merge or share a 2-D copy within a tensor.

``--check`` fails where a median misses what ``bounds.py`` wants of the ops that move blocks or entries.
"""

from __future__ import annotations

import os
import random
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

import torch_llm_datadist as datadist
from torch_llm_datadist import _native, emulator, ops

from . import bounds, instance, native, report

LAYERS, BLOCKS, BLOCK_SIZE, ROW = 4, 256, 16, (4, 64)
BATCH = 20  # calls between two drains: far below what a stream's queue takes
STANDS_S = 0.01  # an emulated device, in which a batch is called
FINISHED = 4  # forwards of a batch whose last op is timed
MANY = 100  # blocks of a larger transfer; see `apart`
PYTHON = "empty Python custom_op"
BESIDE = (  # the ops that there is an empty one for
    "push_layer", "wait_layer", "finish", "push_blocks", "pull_blocks", "push_cache", "pull_cache",
    "copy_blocks", "swap_blocks", "copy_cache",
)  # fmt: skip


@torch.library.custom_op("datadist_bench_python::nothing", mutates_args=("status",))
def nothing(status: torch.Tensor, after: torch.Tensor, layer: int, binding: int) -> None:
    pass


Call = Callable[[int], object]  # the number of a call within its batch


class Measured(NamedTuple):
    call: Call
    empty: Call
    before: Callable[[], object] = lambda: None  # each batch; not timed
    after: Callable[[], object] = lambda: None
    calls: int = BATCH  # of a batch
    is_bounded: bool = True  # by `bounds.py`


def define_empty_ops() -> torch.library.Library:
    """With the schemas of ours; they are there as long as what is returned."""
    library = torch.library.Library("datadist_bench", "FRAGMENT")
    for name in BESIDE:
        schema = str(getattr(torch.ops.torch_llm_datadist, name).default._schema)
        library.define(schema.removeprefix("torch_llm_datadist::"))
    return library


Lists = tuple[torch.Tensor, torch.Tensor]  # of sources and destinations


def apart(count: int) -> Lists:
    """Blocks that each need a copy of their own, as two lists of distinct ids in random order: where sources
    grow, destinations fall, so that neither runs nor rows at a constant distance can be made of them."""
    ids = random.sample(range(BLOCKS), 2 * count)
    pairs = list(zip(sorted(ids[:count]), sorted(ids[count:], reverse=True), strict=True))
    random.shuffle(pairs)
    src, dst = (torch.tensor(column) for column in zip(*pairs, strict=True))
    copies = _native.load().plan_copies([(1 << 20, 1 << 40, 64, 1, 2)], src, dst, BLOCKS, BLOCKS)
    if len(copies) != count:
        raise SystemExit(f"{count} blocks were merged to {len(copies)} copies")
    return src, dst


OURS, EMPTY = torch.ops.torch_llm_datadist, torch.ops.datadist_bench


def calls_of(space: Any, name: str, arguments: tuple[Any, ...]) -> Call:
    op = getattr(space, name).default
    return lambda _: op(*arguments)


class Ends:
    """Two linked instances of this process on two devices, each with a cache of blocks and one of entries."""

    def __init__(self) -> None:
        self.instances = [instance.start(number + 1, number) for number in range(2)]
        self.caches, self.entries, self.statuses = [], [], []
        for number, end in enumerate(self.instances):
            torch.npu.set_device(number)
            key = datadist.BlocksCacheKey(number + 1, 0)
            self.caches.append(end.cache_manager.register_blocks_cache(*self._cache(number), key))
            self.entries.append(end.cache_manager.register_cache(*self._cache(number)))
            self.statuses.append(torch.zeros(1, dtype=torch.int32, device=f"npu:{number}"))
        instance.link(self.instances[0], 2, self.instances[1].listen_port)
        torch.npu.set_device(0)
        self.bindings = [datadist.Binding(number, range(LAYERS)) for number in range(2)]
        self.finishing = [datadist.Binding(0, range(LAYERS)) for _ in range(FINISHED)]

    @staticmethod
    def _cache(device: int) -> tuple[datadist.CacheDesc, list[torch.Tensor]]:
        shape = (BLOCKS, BLOCK_SIZE, *ROW)
        tensors = [torch.zeros(shape, device=f"npu:{device}") for _ in range(2 * LAYERS)]
        return datadist.CacheDesc(2 * LAYERS, list(shape), datadist.DataType.DT_FLOAT), tensors

    def bind(self, src: list[int], dst: list[int]) -> None:
        """A push of all layers, bound at both ends; the receiver's stream waits."""
        key = datadist.BlocksCacheKey(2, 0)
        task = self.instances[0].cache_manager.prepare_push(key, self.caches[0], src, dst)
        self.bindings[1].bind([task.ticket])
        self.bindings[0].bind([task])

    def push_all(self, binding: datadist.Binding) -> None:
        for layer in range(LAYERS):
            ops.push_layer(self.statuses[0], self.statuses[0], layer, binding.id)

    def push_several(self) -> None:
        """A forward of each binding, up to its last op."""
        key, cache = datadist.BlocksCacheKey(2, 0), self.caches[0]
        prepare = self.instances[0].cache_manager.prepare_push
        tasks = [prepare(key, cache, [2 * i], [2 * i]) for i in range(FINISHED)]
        self.bindings[1].bind([task.ticket for task in tasks])
        for binding, task in zip(self.finishing, tasks, strict=True):
            binding.bind([task])
            self.push_all(binding)

    def stand_still(self) -> None:
        """What is called from now on runs later. A real device needs no processor of the host for it."""
        if emulator.is_enabled():
            for number in range(len(self.instances)):
                with torch.npu.device(number):
                    emulator.delay_stream(STANDS_S)

    def drain(self, asked: str) -> None:
        for number, status in enumerate(self.statuses):
            torch.npu.synchronize(number)
            if status.item() != 0:
                raise SystemExit(f"{asked}: an op failed with {datadist.LLMStatusCode(status.item()).name}")

    def close(self) -> None:
        for end in self.instances:
            end.finalize()


def cases(ends: Ends) -> dict[str, Measured]:
    status, tensors = ends.statuses[0], list(ends.caches[0].tensors)
    entries = list(ends.entries[0].tensors)
    link, handle, remote = (
        ends.instances[0].link_id(2),
        ends.caches[0].handle,
        ends.entries[1].cache_id,
    )
    rows, slot = torch.ones(1, *ROW, device="npu:0"), torch.tensor([5], device="npu:0")
    table = torch.arange(4, device="npu:0")
    on_host = [torch.zeros(tensor.shape).pin_memory() for tensor in tensors]
    id_, no_ids = torch.tensor([2]), torch.empty(0, dtype=torch.int64)
    one, many = (id_, id_ + 1), apart(MANY)
    here, there = ends.bindings
    published: list[Any] = []

    def publish(_: int) -> None:
        published.append(ends.instances[0].cache_manager.publish(status, ends.caches[0], None, 2))

    def discard() -> None:
        """Each holds a stream of the link until its end is confirmed."""
        for publication in published:
            datadist.discard(publication)
        deadline = time.monotonic() + 30
        while published:
            if published[-1].state().has_ended:
                published.pop()
            elif time.monotonic() > deadline:
                raise SystemExit("publish: what was discarded has not ended within 30 s")
            else:
                time.sleep(0.001)

    def move(name: str, *arguments: Any) -> Measured:
        return Measured(calls_of(OURS, name, arguments), calls_of(EMPTY, name, arguments))

    def layer(name: str, number: int, binding: datadist.Binding, **around: Any) -> Measured:
        status = ends.statuses[number]

        def call(space: Any) -> Call:
            op = getattr(space, name).default
            return lambda i: op(status, status, i % LAYERS, binding.id)

        return Measured(call(OURS), call(EMPTY), **around)

    def finish(space: Any) -> Call:
        return lambda i: space.finish.default(status, status, ends.finishing[i].id)

    def bound(blocks: Lists) -> dict[str, Any]:
        src, dst = (ids.tolist() for ids in blocks)
        return {"before": lambda: ends.bind(src, dst), "calls": LAYERS}

    def blocks_of(lists: Lists, hold_stream: bool = True) -> tuple[Any, ...]:
        return (status, tensors, *lists, link, 0, 0, 0, -1, 2, 0, hold_stream, 0)

    def unbounded(call: Call, **around: Any) -> Measured:
        return Measured(call, empty_layer, is_bounded=False, **around)

    empty_layer = calls_of(EMPTY, "push_layer", (status, rows, 0, 1))
    entry = (status, entries, no_ids, link, remote, 0, 0, -1, 0, 0, -1, 2, 0, True, 0)
    pushes = move("push_blocks", *blocks_of(one))
    return {
        PYTHON: unbounded(lambda i: nothing(status, rows, i % LAYERS, 1)),
        "push_layer": layer("push_layer", 0, here, **bound(one)),
        f"push_layer, {MANY} blocks": layer("push_layer", 0, here, **bound(many)),
        "push_layer, nothing bound": layer("push_layer", 0, here, before=lambda: here.bind(())),
        "wait_layer": layer("wait_layer", 1, there, **bound(one), after=lambda: ends.push_all(here)),
        "wait_layer, nothing bound": layer("wait_layer", 1, there, before=lambda: there.bind(())),
        "finish": Measured(finish(OURS), finish(EMPTY), before=ends.push_several, calls=FINISHED),
        "push_blocks": pushes,
        f"push_blocks, {MANY} blocks": move("push_blocks", *blocks_of(many)),
        "push_blocks, hold_stream=False": move("push_blocks", *blocks_of(one, hold_stream=False)),
        "push_blocks, by its function": pushes._replace(
            call=lambda _: ops.push_blocks(status, tensors, id_, one[1], link=link), is_bounded=False
        ),
        "pull_blocks": move("pull_blocks", *blocks_of(one), 0),
        f"pull_blocks, {MANY} blocks": move("pull_blocks", *blocks_of(many), 0),
        "push_cache": move("push_cache", *entry),
        "pull_cache": move("pull_cache", *entry, 0),
        "publish (CacheManager)": unbounded(publish, after=discard),
        "copy_blocks": move("copy_blocks", status, tensors, *one),
        f"copy_blocks, {MANY} blocks": move("copy_blocks", status, tensors, *many),
        "swap_blocks, to host memory": move("swap_blocks", status, tensors, on_host, *one),
        f"swap_blocks, to host memory, {MANY} blocks": move("swap_blocks", status, tensors, on_host, *many),
        "checksum_blocks": unbounded(lambda _: ops.checksum_blocks(tensors, table)),
        "copy_cache": move("copy_cache", status, entries, entries, 1, 0, 0, 4096),
        "store_layer": unbounded(
            lambda i: ops.store_layer(status, rows, rows, slot, layer=i % LAYERS, cache=handle)
        ),
        "read_layer": unbounded(
            lambda i: ops.read_layer(
                status, rows, rows, table, block_size=BLOCK_SIZE, layer=i % LAYERS, cache=handle
            )
        ),
    }


class Times(NamedTuple):
    """Seconds, of one call each: on the clock, and of the calling thread's processor."""

    clock: list[float]
    core: list[float]

    @staticmethod
    def none() -> Times:
        return Times([], [])

    def time(self, call: Callable[[int], object], i: int) -> None:
        core = time.thread_time_ns()
        start = time.perf_counter_ns()
        call(i)
        self.clock.append((time.perf_counter_ns() - start) / 1e9)
        self.core.append((time.thread_time_ns() - core) / 1e9)

    def add(self, other: Times) -> None:
        self.clock.extend(other.clock)
        self.core.extend(other.core)


def batch(ends: Ends, name: str, case: Measured) -> tuple[Times, Times]:
    """Of its calls, and of the empty op's before each of them."""
    ours, empty = Times.none(), Times.none()
    while len(ours.clock) < BATCH:
        case.before()
        ends.stand_still()
        for i in range(case.calls):
            pair = [(empty, case.empty), (ours, case.call)]
            for times, call in pair if i % 2 == 0 else reversed(pair):  # what comes second finds caches warm
                times.time(call, i)
        case.after()
        ends.drain(name)
    return ours, empty


def median_us(seconds: list[float]) -> float:
    return statistics.median(seconds) * 1e6


def measure(calls: int) -> list[dict[str, Any]]:
    native.load()
    empty_ops = define_empty_ops()
    ends = Ends()
    wanted = cases(ends)
    found = {name: Times.none() for name in wanted}
    empty = {name: Times.none() for name in wanted}
    for round_ in range(-1, -(-calls // BATCH)):
        for name, case in wanted.items():
            times = batch(ends, name, case)
            if round_ >= 0:  # the first one warms up
                found[name].add(times[0])
                empty[name].add(times[1])
    ends.close()
    empty_ops._destroy()
    python = median_us(found[PYTHON].clock)
    return [
        {
            "op": name,
            **report.sum_up(times.clock),
            "empty_us": median_us(empty[name].clock),
            "over_empty_us": median_us(times.clock) - median_us(empty[name].clock),
            "over_empty_core_us": median_us(times.core) - median_us(empty[name].core),
            "over_custom_op_us": median_us(times.clock) - python,
            "is_bounded": wanted[name].is_bounded,
        }
        for name, times in found.items()
    ]


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("--calls", type=int, default=400, help="of each op, about (default: 400)")
    parser.add_argument("--check", action="store_true", help="fail where a bound is missed")
    options = parser.parse_args()
    facts = report.machine()
    report.print_head(facts)
    sizes = (
        f"caches of {2 * LAYERS} tensors of {BLOCKS} x {BLOCK_SIZE} x {ROW} float32; one block of all "
        f"unless said otherwise; TASK_QUEUE_ENABLE={os.environ.get('TASK_QUEUE_ENABLE', '1')}"
    )
    print(sizes)
    rows = measure(options.calls)
    print(
        f"{'':<40} {'runs':>5} {'median us':>10} {'p99 us':>8} {'empty us':>9} {'over empty':>11} "
        f"{'on its core':>12} {'over custom_op':>15}"
    )
    for row in rows:
        print(
            f"{row['op']:<40} {row['runs']:>5} {row['median_us']:>10.1f} {row['p99_us']:>8.0f} "
            f"{row['empty_us']:>9.1f} "
            f"{row['over_empty_us']:>+11.1f} {row['over_empty_core_us']:>+12.1f} "
            f"{row['over_custom_op_us']:>+15.1f}"
        )
    results = {"machine": facts, "sizes": sizes, "ops": rows}
    report.write(options.json, results)
    if options.check:
        bounds.require(bounds.dispatch(results))


if __name__ == "__main__":
    main()
