"""Runs tests under the race checker: a test during which a race was found ends with its report as an error.

    pytest -p torch_llm_datadist.emulator.pytest_races
    pytest -p torch_llm_datadist.emulator.pytest_races --races-between-processes

Each process that the tests start is checked, too, as long as it inherits the environment. With the option all
of them write traces, and the accesses of all processes together are looked at after each test.

A test that races on purpose is marked ``@pytest.mark.races_on_purpose("why")`` and left out.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from torch_llm_datadist.emulator import libraries
from torch_llm_datadist.emulator.race_checker import Checker
from torch_llm_datadist.emulator.trace_tail import TraceTail

CHECK = "TORCH_LLM_DATADIST_EMULATE_RACES"
REPORTS = "TORCH_LLM_DATADIST_EMULATE_RACE_REPORTS"
TRACE = "TORCH_LLM_DATADIST_EMULATE_TRACE"
MARKER = "races_on_purpose"
BETWEEN_PROCESSES = "--races-between-processes"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        BETWEEN_PROCESSES, action="store_true", help="look for races between processes, too, in their traces"
    )


def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Before anything imports torch_npu: the emulated runtime reads its environment when it is loaded.

    With pytest-xdist each worker, and what it starts, has a place of its own.
    """
    place = Path(tempfile.mkdtemp(prefix="races-"))
    early_config.add_cleanup(lambda: shutil.rmtree(place, ignore_errors=True))
    watch = Watch(place / "reports.txt")
    os.environ[CHECK] = "1"
    os.environ[REPORTS] = str(watch.reports)
    if early_config.known_args_namespace.races_between_processes:
        (place / "traces").mkdir()
        os.environ[TRACE] = str(place / "traces")
        watch.traces = TraceTail(place / "traces")
    early_config.pluginmanager.register(watch, "torch_llm_datadist_races")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", f"{MARKER}(why): touches memory in no order; left out")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    on_purpose = [item for item in items if item.get_closest_marker(MARKER)]
    if on_purpose:
        config.hook.pytest_deselected(items=on_purpose)
        items[:] = [item for item in items if not item.get_closest_marker(MARKER)]


class Watch:
    def __init__(self, reports: Path) -> None:
        self.reports = reports
        self.reports.touch()
        self.traces: TraceTail | None = None
        self._seen = 0

    @pytest.fixture(autouse=True)
    def _no_races(self) -> Iterator[None]:
        yield
        runtime = libraries.loaded_runtime()
        if runtime is not None:
            runtime.emuFlush()
            runtime.emuForgetRaces()  # the next test is reported for the same pair of ops, too
        found = self.new_reports() + self.new_between_processes()
        if found:
            # What the test before left on a stream may have run only now.
            pytest.fail("accesses to the same memory that nothing orders:\n" + found, pytrace=False)

    def new_reports(self) -> str:
        text = self.reports.read_bytes()[self._seen :]
        self._seen += len(text)
        return text.decode(errors="replace")

    def new_between_processes(self) -> str:
        if self.traces is None:
            return ""
        return "".join(f"{race}\n" for race in Checker().run(self.traces.read()))
