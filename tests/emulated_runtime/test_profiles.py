"""Which machine is emulated: the product, the CANN release and the driver."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from torch_llm_datadist.emulator import libraries

from .acl_harness import peer
from .symbols import symbols

PRODUCT, CANN, DRIVER = (f"TORCH_LLM_DATADIST_EMULATE_{name}" for name in ("PROFILE", "CANN", "DRIVER"))

# By first CANN release that has them. A function that no level shows is not listed until it is there.
SINCE = {
    "8.5": ["aclrtIpcMemGetExportKey", "aclrtValueWrite", "aclrtMemcpyBatchAsync", "aclrtHostRegisterV2"],
    "9.0": ["aclrtMemGetAddressRange", "aclrtReserveMemAddressNoUCMemory"],
    "9.1": [
        "aclrtMemcpyBatchAsyncV2",
        "aclrtMemsetD32Async",
        "aclrtMemMapSelectedLink",
        "aclrtDeviceGetP2PAtomicCapabilities",
    ],
    "9.2": ["aclrtRecordEventWithFlag", "aclrtStreamWaitEventWithFlag", "aclrtMemMapNoAccess"],
}
LEVELS = list(SINCE)

VERSIONS = """
import ctypes
def version(package):
    out = ctypes.create_string_buffer(1024)
    acl.aclsysGetCANNVersion(package, out)
    return out.value.decode()
def number(package):
    return acl.last_out("aclsysGetVersionNum", package)
acl.library.aclrtGetSocName.restype = ctypes.c_char_p
minor = ctypes.c_int32()
acl.aclrtGetVersion(ctypes.byref(ctypes.c_int32()), ctypes.byref(minor), ctypes.byref(ctypes.c_int32()))
say(acl.library.aclrtGetSocName().decode(), version(0), version(7), number(b"runtime"), minor.value)
"""


def library_of(level: str) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CANN, level)
        return libraries.runtime_path()


@pytest.mark.parametrize("level", libraries.CANN_LEVELS)
def test_functions_that_a_cann_level_lacks_cannot_be_found(level: str) -> None:
    shown = symbols(library_of(level), "--defined-only")

    for since, names in SINCE.items():
        for name in names:
            assert (name in shown) == (LEVELS.index(since) <= LEVELS.index(level)), name


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "Ascend910B3 9.1.0 26.0.RC1 9010000 17"),
        ({PRODUCT: "a3", CANN: "9.0"}, "Ascend910_9391 9.0.0 26.0.RC1 9000000 17"),
        ({PRODUCT: "950", CANN: "8.5", DRIVER: "25.5"}, "Ascend950PR_9599 8.5.0 25.5.0 8050000 16"),
    ],
)
def test_machine_says_what_the_profile_says(environment: dict[str, str], expected: str) -> None:
    with peer(VERSIONS, **environment) as other:
        assert other.hear() == expected


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        (PRODUCT, "A4", "A2, A3, 950"),
        (DRIVER, "new", "25.5"),
        (CANN, "7.0", "8.5, 9.0, 9.1"),
        ("TORCH_LLM_DATADIST_EMULATE_REFUSE_PEER_VALUES", "yes", "0 or 1"),
    ],
)
def test_unknown_profile_ends_the_process_by_name(variable: str, value: str, expected: str) -> None:
    program = "from tests.emulated_runtime.acl_calls import Acl; Acl()"
    ended = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[2],
        env={"PATH": "", variable: value},
        capture_output=True,
        text=True,
        check=False,
    )

    assert ended.returncode != 0
    assert variable in ended.stderr
    assert value in ended.stderr
    assert expected in ended.stderr
