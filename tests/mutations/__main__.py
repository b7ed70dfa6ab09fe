"""Breaks the emulated runtime on purpose, one guarantee after the other, and sees a test fail each time.

    python -m tests.mutations [word ...] [--all] [--list]

Each edit is made in a copy of the working tree, built there incrementally, and the tests that are named for
it are run. A survivor is an edit that no test noticed: a guarantee that nothing guards. Words pick the edits
whose guarantee, file or tests contain one of them. Edits of emulated aten compute take minutes to build and
run with --all only. Exits with 1 when anything survived or no longer applies.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.mutations import faults, graphs, hixl, memory, modes, processes, streams
from tests.mutations.mutant import ROOT, Mutant

ALL = [m for module in (streams, memory, processes, graphs, faults, modes, hixl) for m in module.MUTANTS]
TEST_LIMIT_S = 90  # a test that hangs has noticed, too
NO_TEST_RAN = (2, 3, 4, 5)  # pytest: interrupted, internal error, wrong usage, nothing selected


class Scratch:
    """A copy of the tree in which the edits are made, with builds of its own."""

    def __init__(self, directory: Path) -> None:
        self.root = directory
        listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
        for name in subprocess.check_output(listed, cwd=ROOT, text=True).split("\0"):
            source, copy = ROOT / name, directory / name
            if not name or not source.is_file():
                continue
            copy.parent.mkdir(parents=True, exist_ok=True)
            if not copy.exists() or copy.read_bytes() != source.read_bytes():
                shutil.copyfile(source, copy)

    def environment(self, target: str) -> dict[str, str]:
        quick = {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        mine = {"PYTHONPATH": str(self.root), "BUILD_TARGETS": target}
        return {**os.environ, **mine, **(quick if target == "emulator" else {})}

    def build_all(self, target: str) -> str:
        """What went wrong; nothing when all is well."""
        environment = {**self.environment(target), "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
        return self.run([sys.executable, "setup.py", "-q", "build_ext", "--inplace"], environment)

    def build(self, target: str) -> str:
        """The same, after an edit: of the emulator only the libraries that the tests load."""
        build = next((self.root / "build").glob("ninja-*"))
        lib = self.root / "torch_llm_datadist" / "emulator" / "lib"
        libraries = [str(lib / name) for name in ("libascendcl.so", "libcann_hixl.so")]
        goals = libraries if target == "emulator" else [target]
        return self.run([sys.executable, "-m", "ninja", "-C", str(build), *goals], dict(os.environ))

    def run(self, command: list[str], environment: dict[str, str]) -> str:
        done = subprocess.run(command, cwd=self.root, env=environment, capture_output=True, text=True)
        return "" if done.returncode == 0 else (done.stdout + done.stderr)[-2000:]

    def test(self, mutant: Mutant) -> tuple[str, bool]:
        """What happened, and whether a test noticed."""
        # The runtime's own tests need neither torch nor emulated compute, which is not built here.
        alone = ["--confcutdir=tests/emulated_runtime"] if mutant.target == "emulator" else []
        plain = ["-x", "-q", "-p", "no:cacheprovider", *alone]
        command = [sys.executable, "-m", "pytest", *plain, *mutant.selection]
        environment = self.environment(mutant.target)
        run = subprocess.Popen(
            command, cwd=self.root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, start_new_session=True,
        )  # fmt: skip
        try:
            said, _ = run.communicate(timeout=TEST_LIMIT_S)
        except subprocess.TimeoutExpired:
            os.killpg(run.pid, 9)
            run.communicate()
            return "hangs", True
        if run.returncode in NO_TEST_RAN:
            return f"the tests did not run:\n{said[-2000:]}", False
        failed = [line.split(" - ")[0] for line in said.splitlines() if line.startswith(("FAILED", "ERROR"))]
        if run.returncode < 0 or (run.returncode != 0 and not failed):
            return "crashes", True
        return (failed[0].split("::")[-1] if failed else "survived"), run.returncode != 0


def noticed(mutant: Mutant, scratch: Scratch) -> tuple[str, bool]:
    path = scratch.root / mutant.path
    text = path.read_text()
    try:
        path.write_text(mutant.edited(text))
        if problem := scratch.build(mutant.target):
            return f"does not compile:\n{problem}", False
        return scratch.test(mutant)
    except ValueError as stale:
        return str(stale), False
    finally:
        path.write_text(text)


def picked(words: list[str], with_aten: bool) -> list[Mutant]:
    def wanted(mutant: Mutant) -> bool:
        text = f"{mutant.breaks} {mutant.file} {mutant.tests}"
        return not words or any(word in text for word in words)

    return [m for m in ALL if wanted(m) and (with_aten or m.target == "emulator")]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutations", description=__doc__.split("\n")[0])
    parser.add_argument("words", nargs="*", help="only edits whose guarantee, file or tests contain one")
    parser.add_argument("--all", action="store_true", help="those of emulated aten compute, too")
    parser.add_argument("--list", action="store_true", help="only say what there is")
    parser.add_argument("--scratch", type=Path, help="keep the copy here, to be faster the next time")
    options = parser.parse_args()
    mutants = picked(options.words, options.all)
    if options.list:
        for mutant in mutants:
            print(f"{mutant.path}: {mutant.breaks}" + (" (equivalent)" if mutant.equivalent else ""))
        return 0
    mutants = [m for m in mutants if not m.equivalent]
    directory = options.scratch or Path(tempfile.mkdtemp(prefix="mutations-"))
    unnoticed = 0
    try:
        scratch = Scratch(directory)
        for target in sorted({m.target for m in mutants}):
            if problem := scratch.build_all(target):
                print(problem)
                return 1
        for number, mutant in enumerate(mutants, 1):
            begun = time.monotonic()
            what, is_noticed = noticed(mutant, scratch)
            unnoticed += not is_noticed
            mark = "" if is_noticed else "SURVIVOR: "
            took = time.monotonic() - begun
            print(f"[{number}/{len(mutants)}] {mark}{mutant.breaks}: {what} ({took:.0f} s)", flush=True)
    finally:
        if options.scratch is None:
            shutil.rmtree(directory)
    print(f"{len(mutants) - unnoticed} of {len(mutants)} edits were noticed")
    return 1 if unnoticed else 0


if __name__ == "__main__":
    sys.exit(main())
