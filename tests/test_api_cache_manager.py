"""CacheManager: what it accepts, what it refuses and how, on two instances in this process.

Cases name their source: "2.6" is the section of the API's description, "seed 003" a document of the mission.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch
import torch_npu

import torch_llm_datadist as datadist
from tests import instances
from torch_llm_datadist import (
    BlocksCacheKey,
    CacheDesc,
    DataType,
    LLMException,
    LLMStatusCode,
    Placement,
    _native,
)
from torch_llm_datadist.keys import CacheKey

INVALID = LLMStatusCode.LLM_PARAM_INVALID
NOT_LINKED = LLMStatusCode.LLM_NOT_YET_LINK
NO_CACHE = LLMStatusCode.LLM_KV_CACHE_NOT_EXIST
TENSORS, BLOCKS, BLOCK_BYTES = 4, 8, 32
HERE, THERE, NOWHERE = 1, 2, 9


def start(cluster_id: int, device: int, **options: Any) -> SimpleNamespace:
    """A listening instance as ``instances.start`` makes one, with any options."""
    config = datadist.LLMConfig()
    config.device_id = device
    config.enable_cache_manager = True
    config.enable_remote_cache_accessible = True
    config.listen_ip_info = "127.0.0.1:0"
    for name, value in options.items():
        setattr(config, name, value)
    instance = datadist.LLMDataDist(datadist.LLMRole.MIX, cluster_id)
    instance.init(config.generate_options())
    return SimpleNamespace(
        datadist=instance,
        cluster_id=cluster_id,
        device=device,
        port=instance.listen_port,
        manager=instance.cache_manager,
    )


def link(one: SimpleNamespace, two: SimpleNamespace) -> None:
    assert instances.link(one, two.cluster_id, two.port) == ["LLM_SUCCESS"]


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[SimpleNamespace, SimpleNamespace]]:
    """Two linked instances on two devices; the first has one cache, the second three."""
    here, there = start(HERE, 0), start(THERE, 1)
    instances.register(here, 1, TENSORS, BLOCKS, BLOCK_BYTES)
    for model_id, tensors, block_bytes in (
        (5, TENSORS, 2 * BLOCK_BYTES),
        (6, 6, BLOCK_BYTES),
        (0, TENSORS, BLOCK_BYTES),
    ):
        instances.register(there, 2, tensors, BLOCKS, block_bytes, model_id=model_id)
    link(here, there)
    yield here, there
    here.datadist.finalize()
    there.datadist.finalize()


def restore(state: SimpleNamespace, seed: int) -> torch.Tensor:
    """Puts the cache's first bytes back; returns them."""
    content = instances.pattern(seed, TENSORS, BLOCKS, BLOCK_BYTES)
    for raw, bytes_ in zip(state.raw, content, strict=True):
        raw.copy_(bytes_)
    return content


def check_raises(expected: Any, call: Callable[[], object]) -> str:
    kind = LLMException if isinstance(expected, LLMStatusCode) else expected
    with pytest.raises(kind) as raised:
        call()
    if isinstance(expected, LLMStatusCode):
        assert raised.value.status_code == expected
    else:
        assert type(raised.value) is expected
    return str(raised.value)


# register_blocks_cache (2.6).


def tensors(
    *shape: int, count: int = 2, dtype: torch.dtype = torch.float16, device: str = "npu:0"
) -> list[torch.Tensor]:
    return [torch.zeros(shape, dtype=dtype, device=device) for _ in range(count)]


DESC = CacheDesc(2, [4, 8], DataType.DT_FLOAT16)

REGISTER_ERRORS: list[tuple[str, Any, Callable[[Any], object]]] = [
    ("no desc", TypeError, lambda m: m.register_blocks_cache(None, tensors(4, 8))),
    ("no addrs", TypeError, lambda m: m.register_blocks_cache(DESC, None)),
    ("tuple of addresses", TypeError, lambda m: m.register_blocks_cache(DESC, (4096, 8192))),
    ("address is a str", TypeError, lambda m: m.register_blocks_cache(DESC, [4096, "8192"])),
    ("address is a bool", TypeError, lambda m: m.register_blocks_cache(DESC, [4096, True])),
    ("negative address", ValueError, lambda m: m.register_blocks_cache(DESC, [4096, -1])),
    ("address 0", INVALID, lambda m: m.register_blocks_cache(DESC, [4096, 0])),
    ("empty", INVALID, lambda m: m.register_blocks_cache(DESC, [])),
    ("too few", INVALID, lambda m: m.register_blocks_cache(DESC, [4096])),
    ("too many", INVALID, lambda m: m.register_blocks_cache(DESC, tensors(4, 8, count=3))),
    ("mixed", TypeError, lambda m: m.register_blocks_cache(DESC, [*tensors(4, 8, count=1), 4096])),
    ("key of another class", TypeError,
     lambda m: m.register_blocks_cache(DESC, tensors(4, 8), CacheKey(1, 2))),
    ("accessible is an int", TypeError, lambda m: m.register_blocks_cache(DESC, tensors(4, 8), None, 1)),
    ("other dtype", INVALID, lambda m: m.register_blocks_cache(DESC, tensors(4, 8, dtype=torch.bfloat16))),
    ("other size", INVALID, lambda m: m.register_blocks_cache(DESC, tensors(4, 9))),
    ("other device", INVALID, lambda m: m.register_blocks_cache(DESC, tensors(4, 8, device="npu:1"))),
    ("on the CPU", INVALID, lambda m: m.register_blocks_cache(DESC, tensors(4, 8, device="cpu"))),
    ("not contiguous", INVALID, lambda m: m.register_blocks_cache(DESC, [t.t() for t in tensors(8, 4)])),
    ("the same twice (mended)", INVALID, lambda m: m.register_blocks_cache(DESC, tensors(4, 8, count=1) * 2)),
    ("overlapping (mended)", INVALID, lambda m: m.register_blocks_cache(DESC, overlapping())),
    ("zero dimension", INVALID,
     lambda m: m.register_blocks_cache(CacheDesc(2, [4, 0], DataType.DT_INT8), [4096, 8192])),
    ("no tensors", INVALID, lambda m: m.register_blocks_cache(CacheDesc(0, [4, 8], DataType.DT_INT8), [])),
    ("strings (mended)", INVALID,
     lambda m: m.register_blocks_cache(CacheDesc(2, [4], DataType.DT_STRING), [4096, 8192])),
    ("device tensors, HOST desc", INVALID,
     lambda m: m.register_blocks_cache(CacheDesc(2, [4, 8], DataType.DT_FLOAT16, Placement.HOST), tensors(4,
         8))),
]  # fmt: skip


def overlapping() -> list[torch.Tensor]:
    memory = torch.zeros(48, dtype=torch.float16, device="npu:0")
    return [memory[:32].view(4, 8), memory[16:].view(4, 8)]


@pytest.mark.parametrize(
    ("expected", "call"), [e[1:] for e in REGISTER_ERRORS], ids=[e[0] for e in REGISTER_ERRORS]
)
def test_register_blocks_cache_refuses(pair: Any, expected: Any, call: Callable[[Any], object]) -> None:
    check_raises(expected, lambda: call(pair[0].manager))


def test_register_blocks_cache_returns_a_handle(pair: Any) -> None:
    """Lifted: the original takes addresses only."""
    manager = pair[0].manager
    held = tensors(4, 2, 4)

    cache = manager.register_blocks_cache(DESC, tuple(held))

    assert cache.cache_desc is DESC
    assert cache.is_blocks_cache
    assert cache.tensor_addrs == [t.data_ptr() for t in held]
    assert cache.cache_id > pair[0].cache.cache_id
    manager.unregister_cache(cache.cache_id)


def test_register_blocks_cache_takes_addresses(pair: Any) -> None:
    here, there = pair
    before = restore(here, 1)
    raw = zeros(1)
    desc = CacheDesc(TENSORS, [BLOCKS, BLOCK_BYTES], DataType.DT_UINT8)

    cache = there.manager.register_blocks_cache(desc, [t.data_ptr() for t in raw], BlocksCacheKey(THERE, 77))

    here.manager.push_blocks(BlocksCacheKey(THERE, 77), here.cache, [1], [6])
    assert torch.equal(torch.stack([t[6].cpu() for t in raw]), before[:, 1])
    there.manager.unregister_cache(cache.cache_id)


def test_a_tensor_over_an_address_is_a_whole_npu_tensor(pair: Any) -> None:
    """Its storage once was none of torch_npu's, and describing it there wrote past its end."""
    held = torch.arange(32, dtype=torch.float16, device="npu:0")
    native = _native.load()

    for _ in range(20):
        tensor = native.tensor_from_address(held.data_ptr(), [4, 8], torch.float16, 0)

        assert torch_npu.get_npu_format(tensor) == torch_npu.get_npu_format(held)
        assert torch_npu.get_storage_size(tensor) == 32
    assert tensor.data_ptr() == held.data_ptr()
    assert torch.equal(tensor.cpu(), held.view(4, 8).cpu())


@pytest.mark.parametrize("cache_id", [None, "1", 1.0, True])
def test_unregister_cache_refuses_what_is_no_id(pair: Any, cache_id: Any) -> None:
    check_raises(TypeError, lambda: pair[0].manager.unregister_cache(cache_id))
    check_raises(TypeError, lambda: pair[0].manager.unregister_cache(pair[0].cache))
    check_raises(ValueError, lambda: pair[0].manager.unregister_cache(2**63))


def test_unregister_cache_of_an_unknown_id_is_no_error(pair: Any) -> None:
    pair[0].manager.unregister_cache(12345)


# push_blocks (2.6, seed 003), pull_blocks (2.6): what both refuse.

KEY = BlocksCacheKey(THERE, 0)

BLOCK_ERRORS: list[tuple[str, Any, dict[str, Any]]] = [
    ("key is None", TypeError, {"key": None}),  # mended: AttributeError in the original
    ("key of another class", TypeError, {"key": 2}),
    ("cache is None", TypeError, {"cache": None}),
    ("cache is an id", TypeError, {"cache": 1}),
    ("contiguous cache", INVALID, {"cache": datadist.Cache(1, DESC, [1, 2], False)}),
    ("foreign cache", NO_CACHE, {"cache": datadist.Cache(1, DESC, [1, 2], True)}),
    ("src empty", INVALID, {"src": []}),
    ("dst empty", INVALID, {"dst": []}),
    ("src is a range", TypeError, {"src": range(2)}),
    ("dst is a range", TypeError, {"dst": range(2)}),
    ("dst is None", TypeError, {"dst": None}),
    ("src holds None", TypeError, {"src": [0, None]}),
    ("src holds a bool", TypeError, {"src": [0, True]}),
    ("src holds a numpy int", TypeError, {"src": [0, numpy.int64(1)]}),
    ("dst holds a float", TypeError, {"dst": [0, 1.0]}),
    ("src negative", ValueError, {"src": [0, -1]}),
    ("dst negative", ValueError, {"dst": [-1, 0]}),
    ("lengths differ", INVALID, {"src": [0]}),
    ("src too large", INVALID, {"src": [0, BLOCKS]}),
    ("dst too large", INVALID, {"dst": [0, BLOCKS]}),
    ("dst twice", INVALID, {"dst": [3, 3]}),
    ("tensor_num_per_layer 0", INVALID, {"tensor_num_per_layer": 0, "src_layer_range": range(1)}),
    ("tensor_num_per_layer -1", ValueError, {"tensor_num_per_layer": -1}),
    ("tensor_num_per_layer None", TypeError, {"tensor_num_per_layer": None}),
    ("tensor_num_per_layer float", TypeError, {"tensor_num_per_layer": 2.0}),
    ("tensor_num_per_layer 3 of 4", INVALID,
     {"tensor_num_per_layer": 3, "src_layer_range": range(1), "dst_layer_range": range(1)}),
    ("src range is a list", TypeError, {"src_layer_range": [0, 1]}),
    ("dst range is a list", TypeError, {"dst_layer_range": [0, 1]}),
    ("src range empty", INVALID, {"src_layer_range": range(0)}),  # mended: "all layers" in a pull
    ("src range backwards", INVALID, {"src_layer_range": range(5, 2)}),
    ("dst range empty", INVALID, {"dst_layer_range": range(1, 1)}),
    ("src range step", INVALID, {"src_layer_range": range(0, 2, 2)}),
    ("dst range negative", INVALID, {"dst_layer_range": range(-1, 1)}),
    ("ranges differ in length", INVALID, {"src_layer_range": range(1), "dst_layer_range": range(2)}),
    ("only src range, short", INVALID, {"src_layer_range": range(1)}),
    ("src range too far", INVALID, {"src_layer_range": range(2, 3), "dst_layer_range": range(1)}),
    ("dst range too far", INVALID, {"src_layer_range": range(1), "dst_layer_range": range(2, 3)}),
    ("no link", NOT_LINKED, {"key": BlocksCacheKey(NOWHERE, 0)}),
    ("no such model", NO_CACHE, {"key": BlocksCacheKey(THERE, 99)}),
    ("other block size", INVALID, {"key": BlocksCacheKey(THERE, 5)}),
    ("unknown keyword", TypeError, {"src_layer_rnge": range(1)}),  # mended: swallowed by the original's pull
]  # fmt: skip


@pytest.mark.parametrize("name", ["push_blocks", "pull_blocks", "prepare_push"])
@pytest.mark.parametrize(
    ("expected", "given"), [e[1:] for e in BLOCK_ERRORS], ids=[e[0] for e in BLOCK_ERRORS]
)
def test_blocks_transfers_refuse(pair: Any, name: str, expected: Any, given: dict[str, Any]) -> None:
    """Mended: a destination twice, and blocks of different size, pass in the original."""
    here, there = pair
    before = restore(here, 1), restore(there, 2)
    arguments = {"src": [0, 1], "dst": [2, 3], "key": KEY, "cache": here.cache, **given}
    positional = [arguments.pop(k) for k in ("key", "cache", "src", "dst")]

    message = check_raises(expected, lambda: getattr(here.manager, name)(*positional, **arguments))

    if expected is not TypeError or "src_layer_rnge" not in given:
        assert message.startswith(f"{name}: ")
    assert torch.equal(instances.content(here), before[0])
    assert torch.equal(instances.content(there), before[1])
    here.manager.push_blocks(KEY, here.cache, [0], [0])  # the link is still usable


def test_push_blocks_without_src_blocks_is_refused(pair: Any) -> None:
    """Seed 003 lets src_blocks be None or be left out; the engine needs it."""
    here, _ = pair
    check_raises(INVALID, lambda: here.manager.push_blocks(KEY, here.cache, dst_blocks=[0]))
    check_raises(INVALID, lambda: here.manager.push_blocks(KEY, here.cache, None, [0]))


def test_push_blocks_refuses_more_tensors_per_layer_than_there_are(pair: Any) -> None:
    """Mended: the original sends nothing and reports success."""
    here, _ = pair
    check_raises(INVALID, lambda: here.manager.push_blocks(KEY, here.cache, [0], [0], tensor_num_per_layer=5))
    prepare = here.manager.prepare_push
    check_raises(INVALID, lambda: prepare(KEY, here.cache, [0], [0], tensor_num_per_layer=3))


def test_pull_blocks_without_ranges_ignores_tensors_per_layer(pair: Any) -> None:
    """2.6: without a range all tensors are pulled, whatever tensor_num_per_layer says."""
    here, there = pair
    restore(here, 1)
    source = restore(there, 2)

    here.manager.pull_blocks(KEY, here.cache, [4], [1], tensor_num_per_layer=7)

    assert torch.equal(instances.content(here)[:, 1], source[:, 4])


def test_pull_blocks_refuses_a_cache_with_another_number_of_tensors(pair: Any) -> None:
    here, _ = pair
    six = BlocksCacheKey(THERE, 6)
    check_raises(INVALID, lambda: here.manager.pull_blocks(six, here.cache, [0], [0]))
    check_raises(
        INVALID, lambda: here.manager.pull_blocks(six, here.cache, [0], [0], dst_layer_range=range(2))
    )

    here.manager.pull_blocks(six, here.cache, [0], [0], src_layer_range=range(1, 3), dst_layer_range=range(2))


def test_pull_blocks_from_itself_is_refused(pair: Any) -> None:
    check_raises(
        INVALID, lambda: pair[0].manager.pull_blocks(BlocksCacheKey(HERE, 0), pair[0].cache, [0], [0])
    )


RANGES = [
    (range(2), range(2)),
    (range(1), range(1, 2)),
    (range(1, 2), range(1)),
    (range(1, 2), range(1, 2)),
    (None, None),
]


@pytest.mark.parametrize(("src", "dst"), RANGES, ids=str)
@pytest.mark.parametrize("name", ["push_blocks", "pull_blocks"])
def test_layer_ranges_start_anywhere_and_may_differ(pair: Any, name: str, src: Any, dst: Any) -> None:
    """Source layer src.start + k goes to layer dst.start + k; seed 003 has equal ranges only."""
    here, there = pair
    contents = {"push_blocks": (restore(here, 1), restore(there, 2))}
    contents["pull_blocks"] = contents["push_blocks"][::-1]
    source, expected = contents[name]
    expected = expected.clone()
    from_layers, to_layers = src or range(2), dst or range(2)
    for s, d in zip(from_layers, to_layers, strict=True):
        expected[2 * d : 2 * d + 2, [7, 2]] = source[2 * s : 2 * s + 2, [0, 5]]

    call = getattr(here.manager, name)
    call(KEY, here.cache, (0, 5), (7, 2), src_layer_range=src, dst_layer_range=dst)

    assert torch.equal(instances.content(there if name == "push_blocks" else here), expected)


def test_push_blocks_waits_for_earlier_work_of_the_current_stream(pair: Any) -> None:
    here, there = pair
    restore(there, 2)
    restore(here, 1)
    with torch.npu.stream(torch.npu.Stream(device=0)):
        for raw in here.raw:
            raw.fill_(7)
        here.manager.push_blocks(KEY, here.cache, [3], [3])

    assert bool((instances.content(there)[:, 3] == 7).all())


def test_push_blocks_works_from_a_thread_that_never_chose_a_device(pair: Any) -> None:
    here, there = pair
    source = restore(there, 2)
    restore(here, 1)
    errors: list[BaseException] = []

    def run() -> None:
        try:
            there.manager.push_blocks(BlocksCacheKey(HERE, 0), there.cache, [1], [2])
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()

    assert errors == []
    assert torch.equal(instances.content(here)[:, 2], source[:, 1])


@pytest.mark.parametrize(
    ("timeout_s", "expected"),
    [
        ("1", TypeError),
        (True, TypeError),
        (0, ValueError),
        (-1.0, ValueError),
        (float("nan"), ValueError),
        (1e10, ValueError),
    ],
)
def test_prepare_push_refuses_bad_timeouts(pair: Any, timeout_s: Any, expected: Any) -> None:
    here, _ = pair
    check_raises(expected, lambda: here.manager.prepare_push(KEY, here.cache, [0], [0], timeout_s=timeout_s))


def test_prepare_push_gives_a_task_with_a_ticket(pair: Any) -> None:
    here, there = pair
    before = restore(there, 2)

    task = here.manager.prepare_push(KEY, here.cache, [0, 1], [2, 3], dst_layer_range=range(2), timeout_s=5)

    assert isinstance(task, datadist.Task)
    assert isinstance(task.ticket, int)
    assert not task.state().has_ended
    del task  # given up: nothing moves
    assert torch.equal(instances.content(there), before)


# Modes, registration and lifetime.


def test_a_cache_that_is_not_remote_accessible_is_neither_seen_nor_sent(pair: Any) -> None:
    here, there = pair
    desc = CacheDesc(TENSORS, [BLOCKS, BLOCK_BYTES], DataType.DT_UINT8)
    hidden = there.manager.register_blocks_cache(desc, zeros(1), BlocksCacheKey(THERE, 55), False)
    own = here.manager.register_blocks_cache(desc, zeros(0), None, False)

    check_raises(NO_CACHE, lambda: here.manager.push_blocks(BlocksCacheKey(THERE, 55), here.cache, [0], [0]))
    check_raises(INVALID, lambda: here.manager.push_blocks(KEY, own, [0], [0]))
    there.manager.unregister_cache(hidden.cache_id)
    here.manager.unregister_cache(own.cache_id)


def zeros(device: int) -> list[torch.Tensor]:
    """Tensors of a cache, written before a peer can write them."""
    made = [
        torch.zeros(BLOCKS, BLOCK_BYTES, dtype=torch.uint8, device=f"npu:{device}") for _ in range(TENSORS)
    ]
    torch.npu.synchronize(device)
    return made


def test_a_later_cache_of_the_same_model_hides_the_earlier_one_and_comes_back(pair: Any) -> None:
    """Mended: with the original a cache registered after linking cannot be reached, and the later one of a
    model ends the earlier one for good.
    """
    here, there = pair
    restore(here, 1)
    before = restore(there, 2)
    desc = CacheDesc(TENSORS, [BLOCKS, BLOCK_BYTES], DataType.DT_UINT8)
    late = zeros(1)
    cache = there.manager.register_blocks_cache(desc, late, BlocksCacheKey(THERE, 0))
    assert here.datadist._running.links.sync(THERE, 10)

    here.manager.push_blocks(KEY, here.cache, [0], [0])
    assert torch.equal(instances.content(there), before)
    assert torch.equal(torch.stack([t[0].cpu() for t in late]), instances.content(here)[:, 0])

    there.manager.unregister_cache(cache.cache_id)
    assert here.datadist._running.links.sync(THERE, 10)
    here.manager.push_blocks(KEY, here.cache, [0], [0])
    assert torch.equal(instances.content(there)[:, 0], instances.content(here)[:, 0])


def hold_control(state: SimpleNamespace) -> Callable[[], None]:
    """Keeps an instance from learning anything; returns what lets it go on."""
    is_held, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        is_held.set()
        go_on.wait(30)

    state.datadist._running.links._loop.post(hold)
    assert is_held.wait(30)
    return go_on.set


@pytest.mark.parametrize("unregister_first", [True, False])
def test_a_name_that_is_used_again_means_the_new_cache_when_the_call_is_back(unregister_first: bool) -> None:
    """Else a push of a peer that has yet to learn of it would go to the old one, and report success."""
    here, there = start(HERE, 0), start(THERE, 1, sync_kv_timeout=20_000)
    for state in (here, there):
        instances.register(state, state.cluster_id, TENSORS, BLOCKS, BLOCK_BYTES)
    link(here, there)
    old, late, is_back = there.cache, zeros(1), threading.Event()

    def register_again() -> None:
        torch.npu.set_device(1)
        if unregister_first:
            there.manager.unregister_cache(old.cache_id)
        there.manager.register_blocks_cache(old.cache_desc, late, BlocksCacheKey(THERE, 0))
        is_back.set()

    let_go = hold_control(here)
    thread = threading.Thread(target=register_again, daemon=True)
    thread.start()

    assert not is_back.wait(0.05)
    let_go()
    assert is_back.wait(30)
    here.manager.push_blocks(KEY, here.cache, [0], [3])
    torch.npu.synchronize(1)
    assert torch.equal(torch.stack([t[3].cpu() for t in late]), instances.content(here)[:, 0])
    thread.join(10)
    for state in (here, there):
        state.datadist.finalize()


def test_an_unregistered_cache_is_not_found_at_either_end(pair: Any) -> None:
    here, there = pair
    instances.register(there, 2, TENSORS, BLOCKS, BLOCK_BYTES, model_id=31)
    extra, there.cache = there.cache, None
    key = BlocksCacheKey(THERE, 31)
    here.manager.push_blocks(key, here.cache, [0], [0])

    there.manager.unregister_cache(extra.cache_id)

    check_raises(NO_CACHE, lambda: there.manager.push_blocks(BlocksCacheKey(HERE, 0), extra, [0], [0]))
    assert here.datadist._running.links.sync(THERE, 10)
    message = check_raises(NO_CACHE, lambda: here.manager.push_blocks(key, here.cache, [0], [0]))
    assert "has no blocks cache with model_id 31; it has 0, 5, 6" in message
    instances.register(there, 2, TENSORS, BLOCKS, BLOCK_BYTES, model_id=0)


def test_without_remote_access_pulls_work_and_pushes_are_refused() -> None:
    one, two = (start(c, d, enable_remote_cache_accessible=False) for c, d in ((3, 0), (4, 1)))
    instances.register(one, 1, TENSORS, BLOCKS, BLOCK_BYTES)
    instances.register(two, 2, TENSORS, BLOCKS, BLOCK_BYTES)
    link(one, two)

    one.manager.pull_blocks(BlocksCacheKey(4, 0), one.cache, [2], [3])
    message = check_raises(
        INVALID, lambda: one.manager.push_blocks(BlocksCacheKey(4, 0), one.cache, [0], [0])
    )

    assert "enable_remote_cache_accessible" in message
    assert torch.equal(instances.content(one)[:, 3], instances.content(two)[:, 2])
    one.datadist.finalize()
    two.datadist.finalize()


def test_calls_of_a_finalized_instance_fail_as_in_the_original() -> None:
    """2.4: an old CacheManager gives PARAM_INVALID for transfers and FAILED for registrations."""
    one = start(3, 0)
    instances.register(one, 1, TENSORS, BLOCKS, BLOCK_BYTES)

    one.datadist.finalize()

    failed = LLMStatusCode.LLM_FAILED
    check_raises(INVALID, lambda: one.manager.push_blocks(KEY, one.cache, [0], [0]))
    check_raises(INVALID, lambda: one.manager.pull_blocks(KEY, one.cache, [0], [0]))
    check_raises(failed, lambda: one.manager.register_blocks_cache(DESC, tensors(4, 8)))
    check_raises(failed, lambda: one.manager.unregister_cache(1))
    check_raises(RuntimeError, lambda: one.datadist.cache_manager)


def test_registered_tensors_are_kept_alive_until_they_are_unregistered() -> None:
    one = start(3, 0)
    desc = CacheDesc(1, [64, 1 << 16], DataType.DT_INT8)
    torch.npu.synchronize(0)
    before = torch.npu.memory_allocated(0)
    cache = one.manager.register_blocks_cache(
        desc, [torch.zeros(64, 1 << 16, dtype=torch.int8, device="npu:0")]
    )
    cache_id = cache.cache_id
    del cache
    assert torch.npu.memory_allocated(0) >= before + (64 << 16)

    one.manager.unregister_cache(cache_id)
    one.datadist.finalize()

    assert torch.npu.memory_allocated(0) < before + (64 << 16)
