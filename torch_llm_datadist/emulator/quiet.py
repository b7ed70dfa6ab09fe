"""Keeps back what torch_npu says on every machine without CANN, and nothing else."""

from __future__ import annotations

import contextlib
import io
import sys
import warnings
from collections.abc import Iterator
from typing import TextIO

# Each is true and harmless here; on an NPU host none of this module runs.
HARMLESS = (
    ".*HcclSetConfig",
    ".*32 padding size",
    ".*taskqueue is empty",
    ".*Cannot create tensor with internal format",
)
_NO_CANN = "ASCEND_HOME_PATH environment variable is not set"


class _WithoutNoCann(io.TextIOBase):
    """Passes everything on but the one line that torch_npu prints (not warns) where no CANN is installed."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._drop_line_end = False

    def write(self, text: str) -> int:
        if _NO_CANN in text:
            self._drop_line_end = not text.endswith("\n")
        elif self._drop_line_end and text == "\n":
            self._drop_line_end = False
        else:
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        self._stream.flush()


@contextlib.contextmanager
def quiet_import() -> Iterator[None]:
    with contextlib.redirect_stdout(_WithoutNoCann(sys.stdout)):
        yield


def quiet_warnings() -> None:
    for message in HARMLESS:
        warnings.filterwarnings("ignore", message=message)
