"""What a run made, and whether two runs made the same."""

import array
import base64
from dataclasses import dataclass


@dataclass(frozen=True)
class Generated:
    """What one run made; two runs are compared by this alone."""

    tokens: list[int]
    first_logits: str  # base64 of float32
    kv_digests: list[str]  # SHA-256, one per layer, of the prompt's keys and values in token order


@dataclass(frozen=True)
class Comparison:
    """Each kind of evidence by itself: tokens alone would hide a zeroed block, and swapped blocks always."""

    tokens: bool
    first_logits: bool
    kv_layers: list[bool]

    @property
    def kv(self) -> bool:
        return all(self.kv_layers)

    @property
    def identical(self) -> bool:
        return self.tokens and self.first_logits and self.kv


def compare(two_processes: Generated, one_process: Generated, exact_logits: bool) -> Comparison:
    """`exact_logits`: bit for bit, as on an emulated device; else as close as an NPU's kernels are."""
    pairs = zip(two_processes.kv_digests, one_process.kv_digests, strict=True)
    same_logits = two_processes.first_logits == one_process.first_logits
    return Comparison(
        tokens=two_processes.tokens == one_process.tokens,
        first_logits=same_logits
        or (not exact_logits and _are_close(two_processes.first_logits, one_process.first_logits)),
        kv_layers=[ours == theirs for ours, theirs in pairs],
    )


def _are_close(left: str, right: str) -> bool:
    ours, theirs = (array.array("f", base64.b64decode(logits)) for logits in (left, right))
    tolerance = 1e-3 * max(abs(value) for value in theirs)
    return len(ours) == len(theirs) and all(
        abs(a - b) <= tolerance for a, b in zip(ours, theirs, strict=True)
    )
