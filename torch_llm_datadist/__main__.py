"""``python -m torch_llm_datadist run|demo|doctor``."""

from __future__ import annotations

import argparse
import runpy
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

USAGE = """\
  run [--emulate | --no-emulate] [--as-llm-datadist] script.py [args…]
  run [--emulate | --no-emulate] [--as-llm-datadist] -m module [args…]
  run [--emulate | --no-emulate] [--as-llm-datadist] command [args…]   as installed: pytest, torchrun …
  demo [options]            `demo --help` lists them
  doctor [options]          what this machine lacks for transfers, and what to do about it"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m torch_llm_datadist", usage=f"%(prog)s <command> …\n\n{USAGE}", add_help=True
    )
    parser.add_argument("command", choices=("run", "demo", "doctor"), metavar="command")
    parser.add_argument("rest", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser


def _run_parser() -> argparse.ArgumentParser:
    from torch_llm_datadist.emulator import presence

    parser = argparse.ArgumentParser(
        prog="python -m torch_llm_datadist run",
        description="Runs a script or module on NPUs; on an emulated one where no Ascend device is.",
    )
    presence.add_options(parser)
    parser.add_argument(
        "--as-llm-datadist",
        action="store_true",
        help="`import llm_datadist` and its submodules give this package, in that run and what it starts",
    )
    parser.add_argument("-m", dest="is_module", action="store_true", help="run a module, as python -m does")
    parser.add_argument("target", metavar="script", help="the script, or an installed command like pytest")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="its arguments")
    return parser


def _installed_command(name: str) -> Callable[[], int | None] | None:
    """What pip made a command of that name for, unless a file is meant."""
    if Path(name).exists():
        return None
    found = metadata.entry_points(group="console_scripts", name=name)
    return next(iter(found)).load() if found else None


def run(argv: list[str]) -> int:
    options = _run_parser().parse_args(argv)
    from torch_llm_datadist import as_llm_datadist, emulator

    emulator.choose(options.emulate)
    if options.as_llm_datadist:
        as_llm_datadist.install()
    sys.argv = [options.target, *options.arguments]
    if options.is_module:
        runpy.run_module(options.target, run_name="__main__", alter_sys=True)
    elif (command := _installed_command(options.target)) is not None:
        return int(command() or 0)
    else:
        # As the interpreter does for a script: its directory is searched first, not the current one.
        sys.path[0] = str(Path(options.target).resolve().parent)
        runpy.run_path(options.target, run_name="__main__")
    return 0


def demo(argv: list[str]) -> int:
    from torch_llm_datadist.demo import main as demo_main

    return demo_main(argv)


def doctor(argv: list[str]) -> int:
    from torch_llm_datadist.doctor import main as doctor_main

    return doctor_main(argv)


def main(argv: list[str]) -> int:
    options = _parser().parse_args(argv)
    return {"run": run, "demo": demo, "doctor": doctor}[options.command](options.rest)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except ImportError as error:
        # A part that is not built says how to build it; a traceback would only hide that.
        if "make build" not in str(error):
            raise
        sys.exit(f"torch_llm_datadist: {error}")
