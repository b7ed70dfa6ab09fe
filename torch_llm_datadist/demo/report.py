"""Everything that the demo says."""

import json
import time
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from torch_llm_datadist.demo.compare import Comparison
from torch_llm_datadist.demo.options import MODES, SABOTAGES, Options
from torch_llm_datadist.emulator.hosts import Counts

STAGES = {"decode": "two processes", "prefill": "one process"}


class Report:
    """Prints the course of one run, and writes its result as JSON where that is asked for."""

    def __init__(self, options: Options, json_file: Path | None, is_emulated: bool) -> None:
        self._options = options
        self._json_file = json_file
        self._is_emulated = is_emulated
        self._started = time.monotonic()
        self._console = Console(highlight=False)
        self._progress = Progress(
            TextColumn("{task.description:<13}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("tokens"),
            TimeElapsedColumn(),
            console=self._console,
        )
        self._bars = {
            role: self._progress.add_task(stage, total=options.tokens, start=False, visible=False)
            for role, stage in STAGES.items()
        }

    def __enter__(self) -> "Report":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop_progress()

    @property
    def backend(self) -> str:
        return "emulated" if self._is_emulated else "npu"

    def started(self, pids: dict[str, int]) -> None:
        where = "emulated Ascend NPUs on this machine's CPU" if self._is_emulated else "real Ascend NPUs"
        self._say(
            f"{where}: prefill on npu:0 (pid {pids['prefill']}), decode on npu:1 (pid {pids['decode']})"
        )
        shape = self._options.shape
        self._say(
            f"Llama: {shape.layers} layers, hidden {shape.hidden_size}, {shape.kv_heads} KV heads, random "
            f"weights; prompt of {len(self._options.prompt)} bytes, blocks of {shape.block_size} tokens"
        )
        if self._options.mode != "eager":
            self._say(f"mode {self._options.mode}: {MODES[self._options.mode]}")
        if self._options.sabotage:
            self._say(f"sabotage {self._options.sabotage}: {SABOTAGES[self._options.sabotage]}")

    def hosts(self, addresses: dict[str, str], latency_ms: float, loss: float) -> None:
        where = ", ".join(f"{role} at {address}" for role, address in addresses.items())
        self._say(f"two emulated hosts: {where}; {latency_ms:g} ms each way, {loss:.3%} of packets are lost")

    def carried(self, counts: Counts) -> None:
        self._say(f"between the hosts: {counts.packets:,} packets, of which {counts.lost:,} were lost")

    def linked(self, transport: str) -> None:
        self._say(
            f"linked over {transport}: prefill pushes each layer from inside its forward, decode waits for "
            "it on its stream"
        )

    def token(self, role: str, tokens_so_far: int) -> None:
        if tokens_so_far == 1:
            self._progress.start()
            self._progress.start_task(self._bars[role])
        self._progress.update(self._bars[role], completed=tokens_so_far, visible=True)

    def compared(self, comparison: Comparison, exposed_ms: float) -> None:
        """The table, the verdict, and the JSON file."""
        options, layers = self._options, len(comparison.kv_layers)
        self._stop_progress()
        table = Table("tokens sent", "generated", "blocks", "bytes", "transfer not hidden by compute")
        table.add_row(
            f"{options.sent_tokens:,}",
            f"{options.tokens:,}",
            f"{options.sent_blocks} x {2 * layers} tensors",
            f"{options.sent_bytes:,}",
            f"{exposed_ms:.2f} ms",
        )
        self._console.print(table)
        self._say(
            f"tokens {_same(comparison.tokens)}; first-step logits {_same(comparison.first_logits)}; "
            f"KV bytes of {sum(comparison.kv_layers)} of {layers} layers the same"
        )
        seconds = time.monotonic() - self._started
        self._say(f"identical: {'yes' if comparison.identical else 'no'}  ({seconds:.1f} s)")
        self._write_json(
            identical=comparison.identical,
            tokens=options.tokens,
            blocks=options.sent_blocks,
            bytes=options.sent_bytes,
            seconds=round(seconds, 3),
            exposed_transfer_ms=round(exposed_ms, 3),
            tokens_identical=comparison.tokens,
            logits_identical=comparison.first_logits,
            kv_identical=comparison.kv,
            kv_layers_identical=comparison.kv_layers,
        )

    def failed(self, message: str, output: str = "") -> None:
        """A run that ended early. `output`: the last lines that the worker printed, if they may help."""
        self._stop_progress()
        if output:
            self._console.print(output, markup=False, style="dim")
        self._console.print(f"demo: {message}", markup=False, soft_wrap=True, style="bold red")
        self._write_json(identical=False, error=message, seconds=round(time.monotonic() - self._started, 3))

    def _stop_progress(self) -> None:
        if self._progress.live.is_started:
            self._progress.stop()

    def _say(self, line: str) -> None:
        self._console.print(line, markup=False, soft_wrap=True)

    def _write_json(self, **fields: object) -> None:
        if self._json_file:
            record = {"backend": self.backend, "mode": self._options.mode, **fields}
            self._json_file.write_text(json.dumps(record, indent=2) + "\n")


def _same(is_same: bool) -> str:
    return "the same" if is_same else "DIFFERENT"
