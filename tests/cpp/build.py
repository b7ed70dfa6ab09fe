"""Builds the C++ tests with ninja: with the objects that the package was built from, or, under a sanitizer,
with objects of their own.
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = ROOT / "tests" / "cpp"
# Everything under the ops that knows no torch. The transport's memory is torch's; the tests bring their own.
CORE = ("acl", "messages", "plan", "link", "transport/engine", "transport/hixl", "transport/nixl")
COMMON = "-std=c++20 -g1 -fPIC -Wall -Wextra -pthread -fno-omit-frame-pointer"


@dataclass(frozen=True)
class Variant:
    """How the sources are compiled."""

    name: str
    flags: str
    compiler: str = os.environ.get("CXX", "g++")
    runner: tuple[str, ...] = ()  # what runs the programs


VARIANTS = {
    "plain": Variant("plain", "-O2"),
    "asan": Variant("asan", "-O0 -fsanitize=address,undefined -fno-sanitize-recover=undefined"),
    # GCC warns that ThreadSanitizer does not see fences. Each of the emulator's stands between accesses that
    # are atomic themselves (a rule of a fault and its generation; a word and the count of who waits for it),
    # and hands no other memory over.
    "tsan": Variant("tsan", "-O0 -fsanitize=thread -Wno-tsan"),
    # With Debian's g++-aarch64-linux-gnu and qemu-user-static. QEMU has a record of every page that a program
    # maps, so the emulated devices must not find the terabytes of addresses that they ask for. Its threads
    # keep this machine's order of memory accesses: on x86 this shows the code for Arm, not its order.
    "aarch64": Variant(
        "aarch64",
        "-O2",
        "aarch64-linux-gnu-g++",
        ("prlimit", f"--as={256 << 30}", "qemu-aarch64-static", "-L", "/usr/aarch64-linux-gnu"),
    ),
}


class Ninja:
    def __init__(self, build: Path, variant: Variant) -> None:
        self._build = build
        headers = Path(_package("torch_npu")) / "include"
        includes = f"-I{ROOT}/csrc -isystem {headers}"
        self._lines = [
            "ninja_required_version = 1.5",
            f"cxx = {variant.compiler}",
            f"flags = {COMMON} {variant.flags} {includes}",
            "rule cxx\n  command = $cxx -MMD -MF $out.d $flags $more -c $in -o $out\n  depfile = $out.d",
            "  deps = gcc\n  description = compile $in",
            "rule link\n  command = $cxx $flags $in $more -o $out\n  description = link $out",
        ]

    def objects(self, sources: list[Path], more: str = "", into: str = "objects") -> list[Path]:
        made = [self._build / into / source.relative_to(ROOT).with_suffix(".o") for source in sources]
        self._lines += [
            f"build {to}: cxx {source}\n  more = {more}" for to, source in zip(made, sources, strict=True)
        ]
        return made

    def link(self, out: str, objects: list[Path], more: str, after: tuple[Path, ...] = ()) -> Path:
        path = self._build / out
        needs = f" | {' '.join(map(str, after))}" if after else ""
        self._lines.append(f"build {path}: link {' '.join(map(str, objects))}{needs}\n  more = {more}")
        return path

    def run(self, programs: list[str]) -> None:
        path = self._build / "build.ninja"
        text = "\n".join(self._lines) + "\n"
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
        command = [sys.executable, "-m", "ninja", "-C", str(self._build), "--quiet"]
        subprocess.run([*command, *(str(self._build / name) for name in programs)], check=True)


def build(variant: Variant, programs: list[str] | None = None) -> Path:
    """Returns the folder with the programs: units, emulator_units, fuzz_*, smoke; or some of them."""
    folder = ROOT / "build" / f"cpp-{variant.name}"
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        ninja = Ninja(folder, variant)
        core, emulator, library = _built() if variant.name == "plain" else _compiled(ninja)
        runtime = f"-L{library.parent} -lascendcl -ldl -Wl,-rpath,{library.parent}"
        tests = ninja.objects(sorted(HERE.glob("*.cpp")))
        named = {path.stem: path for path in tests}
        own = [named["plain_memory"], *core]
        oracles = [named["plan_oracle"], named["message_oracle"]]
        units = [named["main"], *oracles, *(path for path in tests if path.stem.startswith("test_"))]
        ninja.link("units", [*units, *own], runtime, (library,))
        ninja.link("smoke", [named["smoke"], *own], runtime, (library,))
        ninja.link("fuzz_messages", [named["fuzz_messages"], oracles[1], *own], runtime, (library,))
        ninja.link("fuzz_plan", _planner(ninja), "")
        of_emulator = ninja.objects(sorted((HERE / "emulator").glob("*.cpp")))
        # The runtime itself is a part of this one.
        lib = library.parent
        ninja.link(
            "emulator_units",
            [named["main"], *of_emulator, *emulator],
            f"-L{lib} -Wl,--no-as-needed -lmsprofiler -ldl -Wl,-rpath,{lib}",
            (lib / "libmsprofiler.so",),
        )
        ninja.run(programs or [])
    return folder


def _planner(ninja: Ninja) -> list[Path]:
    """What fuzz_plan is made of: few files, and compiled for speed, since it runs millions of cases."""
    folders = [ROOT / "csrc" / part for part in ("messages", "plan")]
    sources = [path for folder in folders for path in sorted(folder.glob("*.cpp"))]
    return ninja.objects([HERE / "fuzz_plan.cpp", HERE / "plan_oracle.cpp", *sources], "-O2", into="fast")


def _built() -> tuple[list[Path], list[Path], Path]:
    """The objects that setup.py has made: of the core, of the emulator; and the emulator's library."""
    (folder,) = (ROOT / "build").glob("ninja-*")
    core = [path for part in CORE for path in _objects(folder / "plugin", part)]
    core += [path for path in _objects(folder / "plugin", "cache") if path.stem == "cache"]
    emulator = [
        *_objects(folder / "emulator", "emulator"),
        *_objects(folder / "emulator-9.1", "emulator_level"),
    ]
    return core, emulator, ROOT / "torch_llm_datadist" / "emulator" / "lib" / "libascendcl.so"


def _objects(target: Path, part: str) -> list[Path]:
    """One per source; a source that is gone has left its object behind."""
    sources = sorted((ROOT / "csrc" / part).rglob("*.cpp"))
    return [(target / source.relative_to(ROOT)).with_suffix(".o") for source in sources]


def _compiled(ninja: Ninja) -> tuple[list[Path], list[Path], Path]:
    csrc = ROOT / "csrc"
    core = [path for part in CORE for path in sorted((csrc / part).rglob("*.cpp"))]
    core.append(csrc / "cache" / "cache.cpp")
    emulator = ninja.objects(sorted((csrc / "emulator").rglob("*.cpp")))
    emulator += ninja.objects(
        sorted((csrc / "emulator_level").glob("*.cpp")), "-DEMU_CANN_MAJOR=9 -DEMU_CANN_MINOR=1"
    )
    profiler = ninja.link(
        "libmsprofiler.so",
        ninja.objects([csrc / "emulator_profiling" / "msprofiler.cpp"]),
        "-shared -Wl,-soname,libmsprofiler.so",
    )
    lib = profiler.parent
    library = ninja.link(
        "libascendcl.so",
        emulator,
        f"-shared -Wl,-soname,libascendcl.so -L{lib} -Wl,--no-as-needed -lmsprofiler -Wl,-rpath,{lib}",
        (profiler,),
    )
    return ninja.objects(core), emulator, library


def _package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise SystemExit(f"{name} is not installed")
    return Path(spec.origin).parent
