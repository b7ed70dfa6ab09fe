"""How emulation is switched on: environment, import order, enable(), the run command; what is refused."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path

import pytest

import torch_llm_datadist
from torch_llm_datadist import _native, emulator
from torch_llm_datadist.emulator import libraries, presence

ROOT = Path(__file__).resolve().parent.parent
HOOK = "torch_llm_datadist_emulator.pth"
DEADLINE_S = 120

SHOW = """
assert torch.ones(2, device="npu").add(1).tolist() == [2, 2]
print(torch.ones(1, device="npu").device.type, torch_npu.__file__)
"""


@pytest.fixture
def environment() -> dict[str, str]:
    """For a fresh interpreter that has the start-up hook, as after installing, but no wish to emulate."""
    hook = Path(sysconfig.get_path("purelib"), HOOK)
    assert hook.exists(), f"{hook} is missing: `make build` and a wheel install it"
    rest = {name: value for name, value in os.environ.items() if not name.startswith("TORCH_LLM_DATADIST")}
    return {**rest, "PYTHONPATH": str(ROOT)}


def python(*arguments: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], env=env, capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )


def assert_ran_on_the_wheel(done: subprocess.CompletedProcess[str]) -> None:
    wheel = metadata.distribution("torch_npu").locate_file("torch_npu/__init__.py")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["npu", str(wheel)]


@pytest.mark.parametrize(
    ("order", "autoload"),
    [
        ("import torch; import torch_npu", "1"),
        ("import torch; import torch_npu", "0"),
        ("import torch_npu; import torch", "1"),
    ],
)
def test_either_import_order_works_with_the_variable_set(
    order: str, autoload: str, environment: dict[str, str]
) -> None:
    env = {**environment, "TORCH_LLM_DATADIST_EMULATE": "1", "TORCH_DEVICE_BACKEND_AUTOLOAD": autoload}

    done = python("-c", order + SHOW, env=env)

    assert_ran_on_the_wheel(done)
    assert done.stderr == ""


def test_enable_before_torch_works_and_children_inherit_it(environment: dict[str, str]) -> None:
    child = f"import torch, torch_npu{SHOW}"
    code = f"""
import subprocess, sys, torch_llm_datadist.emulator as emulator
emulator.enable()
emulator.enable()
sys.exit(subprocess.run([sys.executable, "-c", {child!r}]).returncode)
"""

    done = python("-c", code, env=environment)

    assert_ran_on_the_wheel(done)


def test_enable_after_torch_says_what_to_do(environment: dict[str, str]) -> None:
    env = {**environment, "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}

    done = python("-c", "import torch, torch_llm_datadist; torch_llm_datadist.emulator.enable()", env=env)

    assert done.returncode != 0
    assert re.search(
        "RuntimeError: torch was imported before.*TORCH_LLM_DATADIST_EMULATE=1.*enable.*run", done.stderr
    )


def test_hook_and_package_do_not_import_torch(environment: dict[str, str]) -> None:
    code = """
import sys, torch_llm_datadist
torch_llm_datadist.LLMConfig, torch_llm_datadist.DataType, torch_llm_datadist.CacheDesc
assert torch_llm_datadist.emulator.is_enabled()
print(*[name for name in ("torch", "torch_npu", "numpy") if name in sys.modules])
"""

    done = python("-c", code, env={**environment, "TORCH_LLM_DATADIST_EMULATE": "1"})

    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


@pytest.mark.parametrize("value", ["0", ""])
def test_hook_stays_off_when_not_asked(value: str, environment: dict[str, str]) -> None:
    env = {**environment, "TORCH_LLM_DATADIST_EMULATE": value}

    done = python("-c", "import sys; print('torch_llm_datadist' in sys.modules)", env=env)

    assert (done.stdout.strip(), done.stderr) == ("False", "")


def test_run_emulates_a_script_and_says_so_in_one_line(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("")
    script = tmp_path / "script.py"
    script.write_text(
        f"import sys, beside, torch_npu, torch\nassert sys.argv[1:] == ['--emulate', 'x']{SHOW}"
    )

    done = python("-m", "torch_llm_datadist", "run", str(script), "--emulate", "x", env=environment)

    assert_ran_on_the_wheel(done)
    assert (
        done.stderr == "torch_llm_datadist: no Ascend device here: running on an emulated NPU (plain CPU)\n"
    )


def test_run_takes_modules_and_no_emulate(environment: dict[str, str]) -> None:
    done = python("-m", "torch_llm_datadist", "run", "--no-emulate", "-m", "platform", env=environment)

    assert done.returncode == 0
    assert "emulation is off, as asked" in done.stderr
    assert done.stdout.strip()


FOREIGN = """
import os
import pytest
import torch, torch_npu

@pytest.mark.parametrize("value", range(4))
def test_npu(value):
    assert torch.full((2,), value, device="npu").tolist() == [value] * 2
    assert os.environ["PYTEST_XDIST_WORKER"]
"""


@pytest.mark.parametrize("command", [["pytest"], ["-m", "pytest"]])
def test_run_emulates_the_tests_of_another_project_with_xdist(
    command: list[str], environment: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "test_foreign.py").write_text(FOREIGN)

    done = subprocess.run(
        [sys.executable, "-m", "torch_llm_datadist", "run", "--emulate", *command, "-q", "-n", "2", "-p",
         "no:cacheprovider"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=DEADLINE_S, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 passed" in done.stdout


def test_what_is_neither_a_file_nor_a_command_is_named(environment: dict[str, str]) -> None:
    done = python("-m", "torch_llm_datadist", "run", "--emulate", "no_such_thing", env=environment)

    assert done.returncode != 0
    assert "no_such_thing" in done.stderr


def test_unknown_command_shows_the_usage(environment: dict[str, str]) -> None:
    done = python("-m", "torch_llm_datadist", "fly", env=environment)

    assert done.returncode == 2
    assert "run [--emulate | --no-emulate] [--as-llm-datadist] script.py" in done.stderr


def test_emulation_stays_off_where_an_npu_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    switched: list[str] = []
    monkeypatch.delenv("TORCH_LLM_DATADIST_EMULATE", raising=False)
    monkeypatch.setattr(presence, "has_npu", lambda: True)
    monkeypatch.setattr(presence.switch, "enable", lambda: switched.append("on"))
    monkeypatch.setattr(presence.switch, "disable", lambda: switched.append("off"))

    assert not emulator.choose()
    assert "Ascend device found: running on it" in capsys.readouterr().err
    assert emulator.choose(True)
    assert switched == ["off", "on"]


def test_missing_libraries_name_the_build_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(libraries, "DIRECTORY", tmp_path)

    with pytest.raises(ImportError, match=r"libascendcl\.so.*make build"):
        libraries.check_built()


def test_another_torch_npu_is_refused_with_both_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_native.metadata, "version", lambda name: "2.12.0")
    _native.load.cache_clear()

    with pytest.raises(ImportError, match=r"for torch_npu 2\.13\.0, and torch_npu 2\.12\.0 is installed"):
        _native.load()


@pytest.mark.parametrize("name", torch_llm_datadist.__all__)
def test_public_name_resolves(name: str) -> None:
    assert getattr(torch_llm_datadist, name) is getattr(torch_llm_datadist, name)
