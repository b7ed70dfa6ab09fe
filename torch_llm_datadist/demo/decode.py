"""The decode worker: begins with the prompt's last token at once and waits for each layer on its stream."""

from torch_llm_datadist.demo.engine import CLUSTER_IDS, LINK_TIMEOUT_MS, Engine
from torch_llm_datadist.demo.model import Generation
from torch_llm_datadist.demo.paged_cache import PagedCache, WaitForLayers


def run(engine: Engine) -> None:
    """Serves one request."""
    engine.channel.send("listening", to="prefill", port=engine.datadist.listen_port)
    engine.datadist.wait_linked([CLUSTER_IDS["prefill"]], timeout_s=LINK_TIMEOUT_MS / 1000)
    engine.channel.send("linked")

    dst_blocks = engine.block_ids[: engine.options.sent_blocks]
    engine.channel.send("request", to="prefill", dst_blocks=dst_blocks)
    ticket = engine.inbox.take("ticket", engine.check_peer)["ticket"]
    generation = generate(engine, ticket)
    engine.channel.send("result", generated=vars(generation.result()))

    engine.inbox.take("finish", engine.check_peer)
    engine.channel.send("unlink", to="prefill")
    engine.inbox.take("unlinked")
    engine.datadist.finalize()


def generate(engine: Engine, ticket: int) -> Generation:
    """Generates from blocks that are still on their way when the first step is queued."""
    options = engine.options
    hooks = None
    if options.sabotage != "no-wait":
        engine.bind([ticket])
        hooks = WaitForLayers(engine.status, engine.binding.id)
    cache = PagedCache(engine.blocks, engine.block_ids)
    generation = Generation(engine.model, cache, options.prompt, engine.wait_for_stream)
    for _ in generation.steps(options.tokens, hooks):
        if len(generation.tokens) == 1:
            engine.check_status()
            engine.channel.send("first-step-done", to="prefill")
        engine.check_peer()
        engine.channel.send("token", count=len(generation.tokens))
    return generation
