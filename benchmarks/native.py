"""Builds and loads ``native.cpp``."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shlex
import subprocess
import sysconfig
from functools import cache
from pathlib import Path

SOURCE = Path(__file__).with_name("native.cpp")
BUILD = Path(__file__).parents[1] / "build" / "benchmarks"


def build() -> Path:
    """Compiles it unless it is there; takes a minute. Needs no NPU."""
    import torch
    from torch.utils import cpp_extension

    npu = Path(torch.__file__).parents[1] / "torch_npu"
    includes = [*cpp_extension.include_paths(), str(npu / "include"), sysconfig.get_paths()["include"]]
    flags = [
        "-O2",
        "-std=c++20",
        "-fPIC",
        "-shared",
        f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}",
    ]
    digest = hashlib.sha256(SOURCE.read_bytes() + torch.__version__.encode()).hexdigest()[:16]
    out = BUILD / f"native-{digest}.so"
    if not out.exists():
        BUILD.mkdir(parents=True, exist_ok=True)
        made = out.with_suffix(f".{os.getpid()}")
        subprocess.run(
            [
                *shlex.split(os.environ.get("CXX", "g++")), *flags, str(SOURCE), "-o", str(made),
                *(f"-isystem{path}" for path in includes), "-pthread", f"-L{npu / 'lib'}", "-ltorch_npu",
            ],
            check=True,
        )  # fmt: skip
        made.rename(out)
    return out


@cache
def load() -> ctypes.CDLL:
    import torch_npu  # noqa: F401  # its libraries are what this one needs

    library = ctypes.CDLL(str(build()))
    library.copy_pieces.restype = ctypes.c_int64
    library.copy_pieces.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t]
    library.chain_receiver.restype = library.chain_sender.restype = ctypes.c_void_p
    library.chain_receiver.argtypes = [ctypes.c_int, ctypes.c_char_p]
    library.chain_sender.argtypes = [ctypes.c_int, ctypes.c_size_t, ctypes.c_char_p]
    library.chain_wait.argtypes = [ctypes.c_void_p, ctypes.c_uint64]
    for call in (library.chain_synchronize, library.chain_begin):
        call.argtypes = [ctypes.c_void_p]
    for call in (library.chain_wait, library.chain_synchronize, library.chain_begin):
        call.restype = None
    return library
