"""Builds the three native parts with ninja, on any machine: no CANN, no NPU, no import of torch_npu needed.

plugin     torch_llm_datadist/_C*.so            the ops and everything under them
           torch_llm_datadist/_hixl_shim.so     CANN's HIXL engine, of another C++ ABI, by a C interface
emulator   torch_llm_datadist/emulator/lib/     libascendcl.so and its companions, on a plain CPU
aten       torch_llm_datadist/emulator/_aten.so aten compute on emulated device memory
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path

# torch imports torch_npu by entry point, which fails where no Ascend runtime is.
os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
CANN_LEVELS = ("8.5", "9.0", "9.1")  # the last one is what is emulated unless asked otherwise
# What torch_npu's own libraries ask the loader for. Nothing is called in them, so the emulator's are empty.
COMPANIONS = ("hccl", "acl_op_compiler", "ge_runner", "graph", "acl_tdt_channel")
# Asked for when a profiler starts; each is one file in csrc/emulator_profiling.
PROFILING = ("msprofiler", "mspti", "ascend_hal", "ms_tools_ext")
CORE = ("acl", "cache", "messages", "plan", "link", "transport")
FILES_TOGETHER = 6  # of those that include torch
# Which most other files include, so they are parsed once.
PRECOMPILED = (
    "algorithm", "array", "atomic", "chrono", "condition_variable", "cstdint", "cstring", "deque",
    "functional", "map", "memory", "mutex", "optional", "set", "string", "thread", "unordered_map",
    "utility", "vector",
)  # fmt: skip


def package_dir(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise SystemExit(
            f"setup.py: {name} is not installed for {sys.executable}; pip install {name}==2.13.0"
        )
    return Path(spec.origin).parent


def write_if_new(path: Path, text: str) -> None:
    """Leaves the time of a file alone whose text stays: ninja goes by it."""
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def write_built_for(package: Path) -> None:
    """Says which torch_npu the core is for, where it can be read without loading the core."""
    path = package / "_built_for.py"
    text = f'TORCH_NPU = "{metadata.version("torch_npu")}"\n'
    write_if_new(path, text)


def version_of(package: Path) -> str:
    scope: dict[str, str] = {}
    exec((package / "version.py").read_text(), scope)
    return scope["__version__"]


class NinjaFile:
    """Writes one build.ninja: compile rules per target, sources found by directory."""

    def __init__(self, build: Path) -> None:
        self.build = build
        self.lines = [
            "ninja_required_version = 1.5",
            f"cxx = {os.environ.get('CXX', 'g++')}",
            "rule cxx\n  command = $cxx -MMD -MF $out.d $flags -c $in -o $out",
            "  depfile = $out.d\n  deps = gcc\n  description = compile $in",
            "rule precompile\n  command = $cxx $flags -x c++-header $in -o $out",
            "  description = precompile $in",
            "rule link\n  command = $cxx -shared $in $flags -o $out\n  description = link $out",
            "",
        ]

    def shared(
        self,
        target: str,
        out: Path,
        sources: list[Path],
        cflags: str,
        ldflags: str,
        after: Path | None = None,
    ) -> None:
        self.link(out, self.compile(target, sources, cflags), ldflags, after)

    def precompile(self, target: str, cflags: str) -> Path:
        """A header of standard ones, for files that are compiled with the same flags."""
        header = self.build / f"{target}-standard.h"
        write_if_new(header, "".join(f"#include <{name}>\n" for name in PRECOMPILED))
        self.lines.append(f"build {header}.gch: precompile {header}\n  flags = {cflags}")
        return header

    def compile_together(self, target: str, sources: list[Path], cflags: str) -> list[str]:
        """For files that include torch, whose headers take longer than what follows them: a few at once."""
        groups = -(-len(sources) // FILES_TOGETHER)
        together = []
        for i in range(groups):
            path = self.build / target / f"together-{i}.cpp"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_if_new(path, "".join(f'#include "{source}"\n' for source in sources[i::groups]))
            together.append(path)
        return self.compile(target, together, cflags, base=self.build / target)

    def compile(
        self,
        target: str,
        sources: list[Path],
        cflags: str,
        precompiled: Path | None = None,
        base: Path = ROOT,
    ) -> list[str]:
        """The objects of ``sources``, which lie where they do under ``base``."""
        objects = []
        after = f" | {precompiled}.gch" if precompiled else ""
        if precompiled:
            cflags += f" -include {precompiled}"
        for source in sources:
            obj = self.build / target / source.relative_to(base).with_suffix(".o")
            self.lines.append(f"build {obj}: cxx {source}{after}\n  flags = {cflags}")
            objects.append(str(obj))
        return objects

    def link(
        self,
        out: Path,
        objects: list[str],
        ldflags: str,
        after: Path | None = None,
        script: Path | None = None,
    ) -> None:
        if script:
            ldflags += f" -Wl,--version-script={script}"
        inputs = f"{' '.join(objects)}{f' | {script}' if script else ''}{f' || {after}' if after else ''}"
        self.lines.append(f"build {out}: link {inputs}\n  flags = {ldflags}")

    def write(self, phonies: dict[str, list[Path]]) -> Path:
        for name, outs in phonies.items():
            self.lines.append(f"build {name}: phony {' '.join(map(str, outs))}")
        path = self.build / "build.ninja"
        text = "\n".join(self.lines) + "\n"
        write_if_new(path, text)
        return path


def cpp_in(*directories: str) -> list[Path]:
    return sorted(p for d in directories for p in (ROOT / "csrc" / d).rglob("*.cpp"))


def write_exports(build: Path, level: str) -> Path:
    """The version script of one CANN level: what came later is not shown."""
    source = ROOT / "csrc" / "emulator"
    rows = [line.split() for line in (source / "since.txt").read_text().splitlines() if line[:1].isdigit()]
    later = [name for since, name in rows if CANN_LEVELS.index(since) > CANN_LEVELS.index(level)]
    # An exact name wins over a pattern.
    text = (
        (source / "exports.map").read_text().replace("local:", "local: " + "".join(f"{n}; " for n in later))
    )
    path = build / f"exports-{level}.map"
    write_if_new(path, text)
    return path


OLD_ABI = "-D_GLIBCXX_USE_CXX11_ABI=0"  # CANN's C++


def write_hixl_exports(build: Path, level: str) -> Path:
    """What the emulated libcann_hixl.so of one CANN level shows."""
    text = (ROOT / "csrc" / "emulator_hixl" / "exports.map").read_text()
    if CANN_LEVELS.index(level) < CANN_LEVELS.index("9.1"):
        text = text.replace("local:", "local: _ZN4hixl4Hixl13GetCapabilityENS_11FeatureTypeERi;")
    path = build / f"exports-hixl-{level}.map"
    write_if_new(path, text)
    return path


def write_emulated_hixl(ninja: NinjaFile, lib: Path, flags: str) -> list[Path]:
    objects = ninja.compile("emulator", cpp_in("emulator_hixl"), f"{flags} {OLD_ABI}")
    outs = []
    for level in CANN_LEVELS:
        out = lib / ("" if level == CANN_LEVELS[-1] else f"cann-{level}") / "libcann_hixl.so"
        ninja.link(
            out, objects,
            f"-Wl,-soname,libcann_hixl.so -Wl,-z,defs -pthread -L{lib} -lascendcl"
            " -Wl,-rpath,'$$ORIGIN'",
            after=lib / "libascendcl.so", script=write_hixl_exports(ninja.build, level),
        )  # fmt: skip
        outs.append(out)
    return outs


def write_emulator(ninja: NinjaFile, lib: Path, flags: str) -> list[Path]:
    """libascendcl.so once per CANN level, from the same objects, and its empty companions."""
    outs = [lib / f"lib{name}.so" for name in PROFILING]
    for name, out in zip(PROFILING, outs, strict=True):
        source = ROOT / "csrc" / "emulator_profiling" / f"{name}.cpp"
        ninja.shared("emulator", out, [source], flags, f"-Wl,-soname,{out.name}")
    # Without a soname: torch_npu, which looks for it by name, must not take it for all of CANN's operators.
    operators = lib / "libopapi.so"
    ninja.shared(
        "emulator", operators, cpp_in("emulator_opapi"), flags,
        f"-L{lib} -Wl,--no-as-needed -lascendcl -Wl,-rpath,'$$ORIGIN'", after=lib / "libascendcl.so",
    )  # fmt: skip
    outs.append(operators)
    outs += write_emulated_hixl(ninja, lib, flags)
    objects = ninja.compile("emulator", cpp_in("emulator"), flags, ninja.precompile("emulator", flags))
    for level in reversed(CANN_LEVELS):
        out = lib / ("" if level == CANN_LEVELS[-1] else f"cann-{level}") / "libascendcl.so"
        major, minor = level.split(".")
        told = ninja.compile(
            f"emulator-{level}", cpp_in("emulator_level"),
            f"{flags} -DEMU_CANN_MAJOR={major} -DEMU_CANN_MINOR={minor}",
        )  # fmt: skip
        # torch_npu looks for the profiler's functions through libascendcl's handle.
        ninja.link(
            out, [*objects, *told],
            f"-Wl,-soname,libascendcl.so -Wl,-z,defs -pthread -L{lib} -Wl,--no-as-needed -lmsprofiler"
            " -Wl,-rpath,'$$ORIGIN:$$ORIGIN/..'",
            after=lib / "libmsprofiler.so", script=write_exports(ninja.build, level),
        )  # fmt: skip
        outs.append(out)
    for name in COMPANIONS:
        out = lib / f"lib{name}.so"
        # NEEDED as in CANN: torch_npu looks for runtime functions through libacl_op_compiler's handle, too.
        link = f"-Wl,-soname,lib{name}.so -nostdlib -x c++ /dev/null -L{lib} -Wl,--no-as-needed -lascendcl"
        ninja.link(out, [], f"{link} -Wl,-rpath,'$$ORIGIN'", after=lib / "libascendcl.so")
        outs.append(out)
    return outs


def write_ninja(build: Path, package: Path) -> None:
    torch, torch_npu = package_dir("torch"), package_dir("torch_npu")
    common = "-std=c++20 -O2 -g1 -fPIC -fvisibility=hidden -Wall -Wextra -pthread"
    acl = f"-isystem {torch_npu}/include"
    with_torch = " ".join(
        [
            f"-isystem {torch}/include -isystem {torch}/include/torch/csrc/api/include {acl}",
            f"-isystem {torch_npu}/include/third_party/hccl/inc",
            f"-isystem {torch_npu}/include/third_party/acl/inc",
            f"-isystem {sysconfig.get_paths()['include']} -D_GLIBCXX_USE_CXX11_ABI=1 -Wno-unused-parameter",
        ]
    )
    # libtorch_npu must be NEEDED: Python loads it with local scope. ACL symbols stay open until load.
    link_torch = (
        f"-L{torch}/lib -L{torch_npu}/lib -Wl,--no-as-needed -ltorch_npu -Wl,--as-needed"
        " -ltorch_python -ltorch -ltorch_cpu -lc10 -pthread"
    )

    ninja = NinjaFile(build)
    emulator = write_emulator(ninja, package / "emulator" / "lib", f"{common} {acl} -I{ROOT}/csrc")

    aten = package / "emulator" / "_aten.so"
    objects = ninja.compile_together("aten", cpp_in("emulator_aten"), f"{common} {with_torch} -I{ROOT}/csrc")
    ninja.link(aten, objects, link_torch)

    plugin = package / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
    cflags = (
        f"{common} {with_torch} -I{ROOT}/csrc -DTORCH_EXTENSION_NAME=_C"
        f" -DBUILT_FOR_TORCH_NPU='\"{version_of(torch_npu)}\"'"
    )
    of_torch = [*cpp_in("ops", "python", "transport/mapped"), ROOT / "csrc/ops.cpp"]
    of_torch += [ROOT / "csrc/cache" / name for name in ("local_copy.cpp", "paged.cpp")]
    sources = [path for path in cpp_in(*CORE) if path not in of_torch]
    objects = ninja.compile("plugin", sources, cflags, ninja.precompile("plugin", cflags))
    objects += ninja.compile_together("plugin", of_torch, cflags)
    ninja.link(plugin, objects, link_torch)
    shim = package / "_hixl_shim.so"
    ninja.link(
        shim, ninja.compile("shim", cpp_in("hixl_shim"), f"{common} -I{ROOT}/csrc {OLD_ABI}"),
        "-Wl,-z,defs -ldl", script=ROOT / "csrc/hixl_shim/exports.map",
    )  # fmt: skip
    ninja.write({"emulator": [*emulator, shim], "aten": [aten], "plugin": [plugin, shim]})


class NinjaBuild(build_ext):
    """One ninja run instead of setuptools' compiler calls; BUILD_TARGETS picks parts of it."""

    def run(self) -> None:
        build = (
            ROOT
            / "build"
            / f"ninja-{sysconfig.get_platform()}-{sys.version_info.major}{sys.version_info.minor}"
        )
        # Built into the tree in either case: in-place use needs nothing more, a wheel copies from there.
        package = ROOT / "torch_llm_datadist"
        (package / "emulator" / "lib").mkdir(parents=True, exist_ok=True)
        build.mkdir(parents=True, exist_ok=True)
        with open(build / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            write_ninja(build, package)
            write_built_for(package)
            targets = os.environ.get("BUILD_TARGETS", "").split()
            subprocess.run([sys.executable, "-m", "ninja", "-C", str(build), *targets], check=True)
        if not self.inplace:
            for made in (*package.rglob("*.so"), package / "_built_for.py"):
                target = Path(self.build_lib) / made.relative_to(ROOT)
                self.mkpath(str(target.parent))
                self.copy_file(str(made), str(target))

    def get_outputs(self) -> list[str]:
        return []

    def get_output_mapping(self) -> dict[str, str]:
        return {}


# The hook that makes TORCH_LLM_DATADIST_EMULATE=1 work whatever is imported first must lie in site-packages.
PTH_DIR = os.path.relpath(sysconfig.get_path("purelib"), sys.prefix)

setup(
    ext_modules=[Extension("torch_llm_datadist._C", [])],  # marks the wheel as built for one platform
    cmdclass={"build_ext": NinjaBuild},
    data_files=[(PTH_DIR, ["torch_llm_datadist_emulator.pth"])],
)
