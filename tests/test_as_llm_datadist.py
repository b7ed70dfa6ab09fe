"""``run --as-llm-datadist``: a script for the original runs here as it stands, and nothing else changes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HOOK = ROOT / "torch_llm_datadist_emulator.pth"

IMPORTS = """
import llm_datadist
import llm_datadist as datadist
import torch_llm_datadist as own
from llm_datadist import LLMDataDist, LLMRole, LLMConfig, LLMClusterInfo, BlocksCacheKey, CacheDesc, DataType
from llm_datadist.data_type import dtype_to_np_dtype, DataType as SameDataType
from llm_datadist.status import LLMException, LLMStatusCode
from llm_datadist.configs import LlmConfig
from llm_datadist.v2.cache_manager import CacheManager
from llm_datadist.v2.llm_types import Cache, CacheTask, LayerSynchronizer, Placement
import llm_datadist.v2.llm_datadist

assert LLMDataDist is own.LLMDataDist is llm_datadist.v2.llm_datadist.LLMDataDist
assert SameDataType is DataType is own.DataType and LlmConfig is own.LLMConfig
assert CacheManager is own.CacheManager and LLMException is own.LLMException
assert "LLMDataDist" in dir(llm_datadist) and "CacheManager" in dir(llm_datadist.v2.cache_manager)
"""

SCRIPT = (
    IMPORTS
    + """
import sys
from llm_datadist import *
assert Memtype is own.Memtype
config = LLMConfig()
config.device_id = 0
config.enable_cache_manager = True
instance = LLMDataDist(LLMRole.PROMPT, 1)
instance.init(config.generate_options())
assert isinstance(instance.cache_manager, CacheManager)
instance.finalize()
print("ran", *sys.argv[1:])
"""
)

UNKNOWN = """
import llm_datadist
for wrong in ("from llm_datadist import NoSuchName", "from llm_datadist.v2.llm_types import LLMDataDist"):
    try:
        exec(wrong)
    except ImportError as error:
        print(error)
try:
    import llm_datadist.no_such_module
except ModuleNotFoundError as error:
    print(error)
"""

CHILD = "import llm_datadist, torch_llm_datadist as own; print(llm_datadist.LLMDataDist is own.LLMDataDist)"


def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture
def script(tmp_path: Path) -> Path:
    return tmp_path / "script.py"


def test_a_script_for_the_original_runs_as_it_stands(script: Path) -> None:
    script.write_text(SCRIPT)

    done = run("-m", "torch_llm_datadist", "run", "--as-llm-datadist", script, "a", "b")

    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "ran a b"


SAMPLES = [
    "pull_blocks_sample", "swap_blocks", "push_blocks_sample", "push_cache_sample",
    "transfer_cache_async_sample", "switch_role_sample",
]  # fmt: skip


def test_what_the_shipped_samples_do_runs_under_the_originals_name() -> None:
    sample = ROOT / "tests" / "call_sequences" / "sample_script.py"

    done = run("-m", "torch_llm_datadist", "run", "--as-llm-datadist", sample)

    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if line in SAMPLES] == SAMPLES


# 0.1 and 0.4: the modules of the original that code or its documents name, and names that are in each.
MODULES = {
    "llm_datadist": "LLMDataDist LLMConfig LlmConfig KvCache Status",
    "llm_datadist.configs": "LLMConfig LlmConfig LLMClusterInfo LLMRole",
    "llm_datadist.data_type": "DataType dtype_to_np_dtype np_dtype_to_dtype valid_np_dtypes",
    "llm_datadist.status": "LLMStatusCode LLMException Status",
    "llm_datadist.utils": "",
    "llm_datadist.utils.utils": "",
    "llm_datadist.v2": "",
    "llm_datadist.v2.cache_manager": "CacheManager",
    "llm_datadist.v2.config": "LLMConfig",
    "llm_datadist.v2.llm_datadist": "LLMDataDist LLMRole LLMClusterInfo",
    "llm_datadist.v2.llm_types": "Cache CacheDesc CacheKey CacheKeyByIdAndIndex BlocksCacheKey CacheTask "
    "LayerSynchronizer MemInfo Memtype Placement RegisterMemStatus TransferConfig TransferWithCacheKeyConfig",
    "llm_datadist.v2.llm_utils": "CacheTask",
}


def test_every_module_of_the_original_is_there_and_no_other(script: Path) -> None:
    from torch_llm_datadist.as_llm_datadist import _HOMES

    names = [f"{module}:{name}" for module, names in MODULES.items() for name in names.split()]
    script.write_text(
        f"import importlib\nfor m in {[*MODULES]}: importlib.import_module(m)\n"
        f"for n in {names}: getattr(importlib.import_module(n.split(':')[0]), n.split(':')[1])\n"
    )

    done = run("-m", "torch_llm_datadist", "run", "--as-llm-datadist", script)

    assert done.returncode == 0, done.stderr
    assert {f"llm_datadist.{name}".rstrip(".") for name in _HOMES} == MODULES.keys()


def test_a_name_that_is_none_says_where_it_was_looked_for(script: Path) -> None:
    script.write_text(UNKNOWN)

    done = run("-m", "torch_llm_datadist", "run", "--as-llm-datadist", script)

    assert done.returncode == 0, done.stderr
    *_, first, second, third = done.stdout.splitlines()
    assert "NoSuchName" in first
    assert "LLMDataDist" in second
    assert "llm_datadist.no_such_module" in third


@pytest.mark.parametrize("switches", [(), ("--as-llm-datadist",)])
def test_only_that_run_and_what_it_starts_is_changed(script: Path, switches: tuple[str, ...]) -> None:
    """As processes of an installation start: with the hook of site-packages, here executed by hand."""
    hook = f"exec({HOOK.read_text()!r})"
    script.write_text(
        "import subprocess, sys\n"
        f"child = {hook + chr(10) + CHILD!r}\n"
        "done = subprocess.run([sys.executable, '-c', child], capture_output=True, text=True)\n"
        "print(done.stdout, done.stderr)\n"
    )

    done = run("-m", "torch_llm_datadist", "run", *switches, script)

    assert done.returncode == 0, done.stderr
    assert ("True" in done.stdout.split()) == bool(switches)
    assert ("No module named 'llm_datadist'" in done.stdout) != bool(switches)


def test_an_original_that_was_imported_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "llm_datadist.py").write_text("")
    code = "import llm_datadist; from torch_llm_datadist import as_llm_datadist; as_llm_datadist.install()"

    done = run("-c", code, PYTHONPATH=f"{tmp_path}:{ROOT}")

    assert done.returncode != 0
    assert "llm_datadist was imported already" in done.stderr


def test_importing_this_package_does_not_define_the_originals_name() -> None:
    done = run("-c", "import torch_llm_datadist, llm_datadist")

    assert "No module named 'llm_datadist'" in done.stderr
