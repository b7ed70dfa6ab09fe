"""The decode worker: begins with the prompt's last token at once and waits for each layer on its stream."""

from torch_llm_datadist.demo.engine import CLUSTER_IDS, LINK_TIMEOUT_MS, Engine
from torch_llm_datadist.demo.model import Generation
from torch_llm_datadist.demo.paged_cache import PagedCache, WaitForLayers


def run(engine: Engine) -> None:
    """Serves one request."""
    engine.channel.send("listening", to="prefill", port=engine.datadist.listen_port)
    engine.datadist.wait_linked([CLUSTER_IDS["prefill"]], timeout_s=LINK_TIMEOUT_MS / 1000)
    engine.tell_linked()

    generation = prepare(engine)
    dst_blocks = engine.block_ids[: engine.options.sent_blocks]
    engine.channel.send("request", to="prefill", dst_blocks=dst_blocks)
    ticket = engine.inbox.take("ticket", engine.check_peer)["ticket"]
    generate(engine, generation, ticket)
    engine.channel.send("result", generated=vars(generation.result()))

    engine.inbox.take("finish", engine.check_peer)
    engine.channel.send("unlink", to="prefill")
    engine.inbox.take("unlinked")
    engine.datadist.finalize()


def prepare(engine: Engine) -> Generation:
    """All that a graph needs is captured before the request, while nothing is on its way."""
    options = engine.options
    hooks = None
    if options.sabotage != "no-wait":
        hooks = WaitForLayers(engine.status, engine.binding.id)
    cache = PagedCache(engine.blocks, engine.cache.handle, engine.block_ids, engine.status)
    engine.bind(())
    engine.forwards.warm_up(cache, len(options.prompt) - 1, hooks)
    return Generation(engine.forwards, cache, options.prompt, hooks, wait_for_stream=engine.wait_for_stream)


def generate(engine: Engine, generation: Generation, ticket: int) -> None:
    """Generates from blocks that are still on their way when the first step is queued."""
    waits = engine.options.sabotage != "no-wait"

    def bind(step: int) -> None:
        engine.bind([ticket] if waits and step == 0 else [])

    generation.before_step = bind
    for _ in generation.steps(engine.options.tokens):
        if len(generation.tokens) == 1:
            engine.check_status()
            engine.channel.send("first-step-done", to="prefill")
        engine.check_peer()
        engine.channel.send("token", count=len(generation.tokens))
