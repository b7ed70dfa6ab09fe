"""The prefill worker: computes the prompt and pushes each layer's blocks from inside the forward."""

from collections.abc import Sequence

import torch_npu

import torch_llm_datadist as datadist
from torch_llm_datadist import emulator
from torch_llm_datadist.demo.compare import Generated
from torch_llm_datadist.demo.engine import CACHE_MODEL_ID, LINK_TIMEOUT_MS, TRANSFER_TIMEOUT_S, Engine
from torch_llm_datadist.demo.forwards import Forwards
from torch_llm_datadist.demo.model import Generation
from torch_llm_datadist.demo.paged_cache import PagedCache
from torch_llm_datadist.demo.sabotage import push_hooks, wrong_table


def run(engine: Engine) -> None:
    """Serves one request, then computes the same in this process alone, for the comparison."""
    clusters = link(engine)
    engine.tell_linked()

    dst_blocks = engine.inbox.take("request", engine.check_peer)["dst_blocks"]
    exposed_ms = prefill_and_push(engine, dst_blocks)
    generated = run_alone(engine)
    engine.channel.send("result", generated=vars(generated), exposed_ms=exposed_ms)

    engine.inbox.take("unlink", engine.check_peer)
    engine.datadist.unlink_clusters(clusters, timeout=LINK_TIMEOUT_MS)
    engine.channel.send("unlinked", to="decode")
    engine.datadist.finalize()


def link(engine: Engine) -> list[datadist.LLMClusterInfo]:
    """Links to decode, which listens."""
    info = datadist.LLMClusterInfo()
    info.remote_cluster_id = engine.peer_cluster_id
    info.append_local_ip_info("127.0.0.1", 0)
    info.append_remote_ip_info(engine.options.decode_ip, engine.inbox.take("listening")["port"])
    status, _ = engine.datadist.link_clusters([info], timeout=LINK_TIMEOUT_MS)
    if status != datadist.LLMStatusCode.LLM_SUCCESS:
        raise RuntimeError(f"linking to decode failed: {status.name}")
    return [info]


def prefill_and_push(engine: Engine, dst_blocks: Sequence[int]) -> float:
    """Returns for how many ms the stream, all computed, still waited for the last bytes to leave."""
    options = engine.options
    src_blocks = engine.block_ids[: options.sent_blocks]
    table = wrong_table(dst_blocks) if options.sabotage == "swap" else dst_blocks
    key = datadist.BlocksCacheKey(engine.peer_cluster_id, CACHE_MODEL_ID)
    task = engine.datadist.cache_manager.prepare_push(
        key,
        engine.cache,
        src_blocks,
        table,
        src_layer_range=options.sent_layers,
        dst_layer_range=options.sent_layers,
        timeout_s=TRANSFER_TIMEOUT_S,
    )
    engine.channel.send("ticket", to="decode", ticket=task.ticket)
    if options.sabotage == "no-wait":
        engine.inbox.take("first-step-done", engine.check_peer)

    computed, sent = (torch_npu.npu.Event(enable_timing=True) for _ in range(2))
    cache = PagedCache(engine.blocks, engine.cache.handle, engine.block_ids, engine.status)
    prompt = options.prompt[: options.sent_tokens]
    hooks = push_hooks(options, engine.status, engine.binding.id)

    def begin() -> None:
        engine.bind([task])
        if options.prefill_delay_s:
            emulator.delay_stream(options.prefill_delay_s)

    engine.forwards.prefill(cache, prompt, hooks, begin)
    computed.record()
    datadist.ops.finish(engine.status, engine.blocks[-1], engine.binding.id)
    sent.record()
    engine.check_status()
    return float(computed.elapsed_time(sent))


def run_alone(engine: Engine) -> Generated:
    """The same prompt and number of tokens without transfers, eagerly, in blocks of its own, scattered
    anew."""
    options = engine.options
    num_blocks, block_ids = options.scattered_blocks("one process")
    blocks = engine.register_blocks(num_blocks, None)
    cache = PagedCache(blocks.tensors, blocks.handle, block_ids, engine.status)
    forwards = Forwards(engine.model)
    forwards.prefill(cache, options.prompt[: options.sent_tokens])
    generation = Generation(forwards, cache, options.prompt, wait_for_stream=engine.wait_for_stream)
    for _ in generation.steps(options.tokens):
        engine.check_peer()
        engine.channel.send("token", count=len(generation.tokens))
    return generation.result()
