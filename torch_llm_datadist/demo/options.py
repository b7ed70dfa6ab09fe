"""The demo's command line, and what of it the worker processes need."""

import argparse
import dataclasses
import random
from dataclasses import dataclass
from pathlib import Path

SABOTAGES = {
    "flip": "one byte of the keys of one layer is changed before they are sent",
    "swap": "two destination blocks are swapped in the table that the push is given",
    "drop-layer": "one layer is never sent, and nobody waits for it",
    "no-wait": "decode does not wait for what it reads, and prefill is late",
}


MODES = {
    "eager": "op by op",
    "compile": "under torch.compile(fullgraph=True)",
    "graph": "decode as an NPUGraph, replayed for each token",
}


@dataclass(frozen=True)
class ModelShape:
    """Sizes of the model and of its cache."""

    layers: int = 8
    hidden_size: int = 256
    heads: int = 8
    kv_heads: int = 4
    block_size: int = 16
    seed: int = 20

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.heads

    @property
    def bytes_per_block(self) -> int:
        """Of one tensor: the keys, or the values, of one layer."""
        return self.block_size * self.kv_heads * self.head_dim * 4


@dataclass(frozen=True)
class Options:
    """One run of the demo. Every worker gets all of it."""

    prompt: list[int]
    tokens: int = 64
    sabotage: str | None = None
    prefill_delay_s: float = 0.0
    mode: str = "eager"
    backend: str = "aot_eager"
    shape: ModelShape = ModelShape()
    decode_ip: str = "127.0.0.1"  # where prefill reaches decode
    transport: str = ""  # the only one that the link may take

    @property
    def sent_tokens(self) -> int:
        """Prefill computes all of the prompt but its last token, with which decode begins."""
        return len(self.prompt) - 1

    @property
    def sent_blocks(self) -> int:
        return -(-self.sent_tokens // self.shape.block_size)

    @property
    def sent_bytes(self) -> int:
        return self.sent_blocks * self.shape.bytes_per_block * 2 * self.shape.layers

    @property
    def sequence_blocks(self) -> int:
        """Blocks for the prompt and all that is generated."""
        return -(-(len(self.prompt) + self.tokens) // self.shape.block_size)

    @property
    def sabotaged_layer(self) -> int:
        return self.sent_layers.stop if self.sabotage == "drop-layer" else self.shape.layers // 2

    @property
    def sent_layers(self) -> range:
        """All of them, unless the last one is dropped on purpose."""
        return range(self.shape.layers - (self.sabotage == "drop-layer"))

    def scattered_blocks(self, where: str) -> tuple[int, list[int]]:
        """(blocks in the pool, the sequence's blocks in token order): scattered over a pool twice as large,
        differently in each place."""
        pool = 2 * self.sequence_blocks + 3
        return pool, random.Random(f"{self.shape.seed} {where}").sample(range(pool), self.sequence_blocks)

    def to_dict(self) -> dict[str, object]:
        return dataclasses.asdict(self)

    @staticmethod
    def from_dict(fields: dict) -> "Options":
        return Options(**{**fields, "shape": ModelShape(**fields["shape"])})


@dataclass(frozen=True)
class CommandLine:
    options: Options
    json_file: Path | None
    hosts: int = 1
    latency_ms: float = 0.0
    loss: float = 0.0


def parse(argv: list[str]) -> CommandLine:
    """Reads the command line; ends the process with a message when it is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m torch_llm_datadist demo",
        description="A transformer prefills in one process, its KV cache arrives in another one layer by "
        "layer, and that one goes on generating exactly what a single process would have.",
    )
    parser.add_argument(
        "--prompt", type=Path, metavar="FILE", help="the prompt's text; default: one of 2,031 bytes"
    )
    parser.add_argument("--tokens", type=int, default=64, help="how many tokens to generate (default: 64)")
    parser.add_argument(
        "--sabotage",
        choices=SABOTAGES,
        help="break the transfer on purpose: "
        + "; ".join(f"{name}: {what}" for name, what in SABOTAGES.items()),
    )
    parser.add_argument(
        "--mode",
        choices=MODES,
        default="eager",
        help="how the forwards run: "
        + "; ".join(f"{name}: {what}" for name, what in MODES.items())
        + " (default: eager)",
    )
    parser.add_argument(
        "--backend", default="aot_eager", help="of torch.compile with --mode compile (default: aot_eager)"
    )
    parser.add_argument(
        "--hosts",
        type=int,
        choices=(1, 2),
        default=1,
        help="2: the processes run on two emulated hosts, with a network between them (default: 1)",
    )
    parser.add_argument(
        "--latency", type=float, default=0.0, metavar="MS", help="of that network, one way (default: 0)"
    )
    parser.add_argument(
        "--loss", type=float, default=0.0, metavar="SHARE", help="of its packets, 0 to 1 (default: 0)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result to FILE as well")
    # For the tests.
    parser.add_argument("--layers", type=int, default=ModelShape.layers, help=argparse.SUPPRESS)
    parser.add_argument("--block-size", type=int, default=ModelShape.block_size, help=argparse.SUPPRESS)
    parser.add_argument("--prefill-delay", type=float, default=0.0, metavar="SECONDS", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)

    prompt = _read_prompt(parser, arguments.prompt)
    for name in ("tokens", "layers", "block_size"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, not {getattr(arguments, name)}")
    options = Options(
        prompt=prompt,
        tokens=arguments.tokens,
        sabotage=arguments.sabotage,
        prefill_delay_s=arguments.prefill_delay,
        mode=arguments.mode,
        backend=arguments.backend,
        shape=ModelShape(layers=arguments.layers, block_size=arguments.block_size),
    )
    if options.sabotage == "swap" and options.sent_blocks < 2:
        parser.error("--sabotage swap needs a prompt of at least two blocks")
    if arguments.hosts == 1 and (arguments.latency or arguments.loss):
        parser.error("--latency and --loss are of the network between hosts; give --hosts 2 as well")
    if arguments.latency < 0 or not 0 <= arguments.loss < 1:
        parser.error(
            f"--latency {arguments.latency:g} --loss {arguments.loss:g}: expected 0 or more ms, and a share "
            "from 0 to less than 1"
        )
    if arguments.json is not None and not arguments.json.absolute().parent.is_dir():
        parser.error(f"--json {arguments.json}: there is no directory {arguments.json.absolute().parent}")
    return CommandLine(options, arguments.json, arguments.hosts, arguments.latency, arguments.loss)


def _read_prompt(parser: argparse.ArgumentParser, file: Path | None) -> list[int]:
    file = file or Path(__file__).with_name("prompt.txt")
    try:
        prompt = list(file.read_bytes())
    except OSError as error:
        parser.error(f"--prompt: {error}")
    if len(prompt) < 2:
        parser.error(
            f"--prompt: {file} has {len(prompt)} bytes; at least 2 are needed, for prefill and for decode"
        )
    return prompt
