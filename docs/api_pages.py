"""Writes docs/api: one page per public class, and one for each family of functions, from the docstrings.

    python docs/api_pages.py

``make api-docs`` does the same. The tests compare the pages with what this gives, and run the examples.
"""

from __future__ import annotations

import enum
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PACKAGE = "torch_llm_datadist"
PAGES = Path(__file__).parent / "api"
SETUP = Path(__file__).parent / "examples_setup.py"
_INDENT = "    "

# What the public calls return or raise beside the exported names, and the page on which it is.
_COMPANIONS = {
    "Binding": [("binding", "TransferState")],
    "CacheManager": [("registry", "HeldCacheInfo"), ("blocks_in_doubt", "BlocksInDoubt")],
    "LLMDataDist": [("link_table", "LinkInfo")],
    "TransferWatch": [("transfer_watch", "Finished"), ("transfer_watch", "FailedTransfer")],
}
_GROUPS = [
    ("Instances and links", ["LLMDataDist", "LLMConfig", "LLMClusterInfo", "LLMRole", "RegisterMemStatus"]),
    (
        "Caches",
        ["CacheManager", "Cache", "CacheDesc", "BlocksCacheKey", "CacheKey", "CacheKeyByIdAndIndex",
         "DataType", "Placement", "MemInfo", "Memtype", "KvCacheManager"],
    ),
    (
        "Transfers",
        ["ops", "Binding", "Task", "Publication", "functions", "TransferWatch", "CacheTask",
         "LayerSynchronizer", "StreamLayerSynchronizer", "TransferConfig", "TransferWithCacheKeyConfig"],
    ),
    ("Errors", ["LLMException", "LLMStatusCode", "Status"]),
    ("Without an NPU", ["emulator"]),
]  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """One thing that is documented: where it is reached, and its docstring."""

    name: str
    doc: str


# From a docstring to Markdown.


def _inline(text: str) -> str:
    return text.replace("``", "`")


def _blocks(doc: str) -> Iterator[list[str]]:
    """Paragraphs, examples and sections: what empty lines separate; an example goes on over them."""
    block: list[str] = []
    for line in inspect.cleandoc(doc).splitlines():
        if line.strip():
            block.append(line)
        elif block:
            yield block
            block = []
    if block:
        yield block


_SECTION = re.compile(r"(Args|Attributes|Raises|Returns|Returns, raises|Source|Stream):\s*(.*)")
_ITEM = re.compile(r"([*\w][\w, *]*?):(?:\s+(.*))?$")


def _items(lines: list[str]) -> list[str]:
    """``name: text`` with deeper lines that go on, as a list; other text stays text."""
    found: list[str] = []
    for line in lines:
        item = _ITEM.match(line)
        if item and not line.startswith(" "):
            names = ", ".join(f"`{name.strip()}`" for name in item[1].split(","))
            found.append(f"* {names}: {_inline(item[2] or '')}")
        elif found:
            found[-1] += " " + _inline(line.strip())
        else:
            found.append(_inline(line.strip()))
    return found


def _markdown(doc: str) -> list[str]:
    out: list[str] = []
    for block in _blocks(doc):
        if block[0].startswith(">>>"):
            out += ["```python", *block, "```", ""]
            continue
        if set(block[0]) == {"=", " "}:  # a table of the docstring
            out += ["```text", *block, "```", ""]
            continue
        section = _SECTION.match(block[0])
        if section is None:
            out += [_inline(line) for line in block] + [""]
            continue
        rest = inspect.cleandoc("\n" + "\n".join(block[1:])).splitlines() if len(block) > 1 else []
        if section[2]:
            out += [f"**{section[1]}:** {_inline(section[2])}", *(_inline(line) for line in rest), ""]
        else:
            out += [f"**{section[1]}:**", "", *_items(rest), ""]
    return out


# From an object to its part of a page.


def _default(value: object) -> str:
    return str(value) if isinstance(value, enum.Enum) else repr(value)


def _signature(function: Callable[..., Any], skip_first: bool) -> str:
    """The parameters as the source spells their types; the same in every version of Python."""
    signature = inspect.signature(function)
    parameters = list(signature.parameters.values())[1 if skip_first else 0 :]
    parts, has_star = [], False
    for p in parameters:
        text = p.name
        if p.kind == p.VAR_POSITIONAL:
            text, has_star = f"*{p.name}", True
        elif p.kind == p.VAR_KEYWORD:
            text = f"**{p.name}"
        elif p.kind == p.KEYWORD_ONLY and not has_star:
            parts.append("*")
            has_star = True
        if p.annotation is not p.empty:
            text += f": {p.annotation if isinstance(p.annotation, str) else p.annotation.__name__}"
        if p.default is not p.empty:
            is_factory = type(p.default).__name__ == "_HAS_DEFAULT_FACTORY_CLASS"
            text += (" = " if ":" in text else "=") + ("…" if is_factory else _default(p.default))
        parts.append(text)
    returns = signature.return_annotation
    arrow = (
        ""
        if returns is signature.empty
        else f" -> {returns if isinstance(returns, str) else returns.__name__}"
    )
    one_line = f"({', '.join(parts)}){arrow}"
    if len(one_line) <= 80:
        return one_line
    return "(\n" + "".join(f"{_INDENT}{part},\n" for part in parts) + f"){arrow}"


def _own_docstring(value: object) -> str:
    return inspect.getdoc(value) or ""


def _members(cls: type) -> list[tuple[str, object]]:
    """The public ones, also of the package's base classes, in the order of the source."""
    found: dict[str, object] = {}
    for base in cls.__mro__:
        if not base.__module__.startswith(PACKAGE):
            continue
        for name, value in vars(base).items():
            if not name.startswith("_"):
                found.setdefault(name, value)
    return list(found.items())


def _is_method(value: object) -> bool:
    return inspect.isfunction(value) or isinstance(value, (staticmethod, classmethod))


def _method(cls: type, name: str, value: object) -> list[str]:
    function = value.__func__ if isinstance(value, (staticmethod, classmethod)) else value
    assert callable(function)
    prefix = f"{cls.__name__}." if isinstance(value, (staticmethod, classmethod)) else ""
    is_async = "async " if inspect.iscoroutinefunction(function) else ""
    shown = _signature(function, skip_first=not isinstance(value, staticmethod))
    return [f"### `{name}`", "", "```python", f"{is_async}{prefix}{name}{shown}", "```", "",
            *_markdown(_own_docstring(function))]  # fmt: skip


def _property(name: str, value: object) -> list[str]:
    title = f"### `{name}`"
    if isinstance(value, property):
        assert value.fget is not None
        kind = inspect.signature(value.fget).return_annotation
        settable = ", may be set" if value.fset is not None else ""
        return [title, "", f"`{kind}`{settable}", "", *_markdown(_own_docstring(value))]
    return [title, "", *_markdown(_own_docstring(value))]


def _is_property(value: object) -> bool:
    return isinstance(value, property) or type(value).__name__ == "Option"


def _class(cls: type, module: str, level: str = "#") -> list[str]:
    out = [f"{level} {cls.__name__}", "", *_markdown(cls.__doc__ or "")]
    if issubclass(cls, enum.Enum):
        out += ["| Member | Value |", "|---|---|"]
        return [*out, *(f"| `{member.name}` | {member.value} |" for member in cls), ""]
    fields = getattr(cls, "_fields", None) or getattr(cls, "__dataclass_fields__", None)
    if fields is not None:
        kinds = cls.__annotations__
        spelled = {name: getattr(kinds[name], "__forward_arg__", kinds[name]) for name in fields}
        return [*out, *(f"* `{name}`: `{kind}`" for name, kind in spelled.items()), ""]
    if cls.__init__ is not object.__init__ and "LLMDataDist`" not in (cls.__doc__ or ""):
        out[2:2] = [
            "```python",
            f"{module}.{cls.__name__}{_signature(cls.__init__, skip_first=True)}",
            "```",
            "",
        ]
        out[3] = out[3].replace(" -> None", "")
    members = _members(cls)
    properties = [(n, v) for n, v in members if _is_property(v)]
    methods = [(n, v) for n, v in members if _is_method(v)]
    if properties:
        out += ["## Properties", ""]
        for name, value in properties:
            out += _property(name, value)
    if methods:
        out += ["## Methods", ""]
        for name, value in methods:
            out += _method(cls, name, value)
    return out


def _function(name: str, value: Callable[..., Any]) -> list[str]:
    return [f"## `{name}`", "", "```python", f"{name}{_signature(value, skip_first=False)}", "```", "",
            *_markdown(_own_docstring(value))]  # fmt: skip


# The pages.


def _package() -> Any:
    return importlib.import_module(PACKAGE)


def _names() -> tuple[list[str], list[str], dict[str, str]]:
    """(classes, functions, aliases) of the package; an alias names the class that it is."""
    package = _package()
    classes, functions, aliases = [], [], {}
    for name in package.__all__:
        value = getattr(package, name)
        if inspect.isclass(value) and value.__name__ == name:
            classes.append(name)
        elif inspect.isclass(value):
            aliases[name] = value.__name__
        elif inspect.isfunction(value):
            functions.append(name)
    return classes, functions, aliases


def _module_functions(name: str) -> list[tuple[str, Callable[..., Any]]]:
    module = importlib.import_module(f"{PACKAGE}.{name}")
    names = getattr(module, "__all__", None) or [n for n in vars(module) if not n.startswith("_")]
    found = [(n, getattr(module, n)) for n in names]
    return [
        (n, v) for n, v in found if inspect.isfunction(v) and v.__module__.startswith(f"{PACKAGE}.{name}")
    ]


def _exceptions() -> list[type]:
    module = importlib.import_module(f"{PACKAGE}.errors")
    base = module.LLMException
    classes = [value for value in vars(module).values() if inspect.isclass(value)]
    return [cls for cls in classes if issubclass(cls, base) and cls is not base]


def _companions(name: str) -> list[type]:
    return [
        getattr(importlib.import_module(f"{PACKAGE}.{module}"), cls)
        for module, cls in _COMPANIONS.get(name, [])
    ]


def _page_of_class(name: str, aliases: dict[str, str]) -> list[str]:
    out = _class(getattr(_package(), name), PACKAGE)
    also = [alias for alias, cls in aliases.items() if cls == name]
    if also:
        out += [f"Also called `{'`, `'.join(also)}`.", ""]
    for companion in _companions(name):
        out += _class(companion, PACKAGE, "##")
    if name == "LLMException":
        out += ["## Exceptions of `torch_llm_datadist.errors`", "", "| Class | Code | |", "|---|---|---|"]
        for cls in _exceptions():
            about = _inline(" ".join((cls.__doc__ or "").split()))
            base = cls.__base__.__name__
            out.append(f"| `{cls.__name__}` ({base}) | `{cls.default_code.name}` | {about} |")
        out.append("")
    return out


def _page_of_module(name: str) -> list[str]:
    module = importlib.import_module(f"{PACKAGE}.{name}")
    out = [f"# `{PACKAGE}.{name}`", "", *_markdown(module.__doc__ or "")]
    for function, value in _module_functions(name):
        out += _function(function, value)
    return out


def _page_of_functions(functions: list[str]) -> list[str]:
    out = [f"# Functions of `{PACKAGE}`", ""]
    for name in functions:
        out += _function(name, getattr(_package(), name))
    return out


def _first_line(doc: str) -> str:
    block = next(_blocks(doc), [""])
    text = _inline(" ".join(block))
    return re.split(r"(?<=\.)\s", text)[0].rstrip(".")


def _index(pages: dict[str, str]) -> list[str]:
    out = [
        "# API",
        "",
        "Generated from the docstrings by `make api-docs`. A *seed* or *manual page* that an entry names as",
        "its source is a page of the LLM-DataDist manual; what differs: [deviations.md](../deviations.md).",
        "",
    ]
    for title, names in _GROUPS:
        out += [f"## {title}", "", *(f"* [{name}]({name}.md): {pages[name]}" for name in names), ""]
    setup = SETUP.read_text().split('"""', 2)[2].strip()
    return [
        *out,
        "## What the examples begin with",
        "",
        "Two linked instances with a cache each. They live in one process here and mostly in two; their code",
        "is the same. Without an NPU, `python -m torch_llm_datadist run --emulate script.py` runs it.",
        "",
        "```python",
        setup,
        "```",
        "",
    ]


def pages() -> dict[str, str]:
    """File name: text."""
    classes, functions, aliases = _names()
    made = {name: _page_of_class(name, aliases) for name in classes}
    about = {name: _first_line(getattr(_package(), name).__doc__ or "") for name in classes}
    for name in ("ops", "emulator"):
        made[name] = _page_of_module(name)
        about[name] = _first_line(importlib.import_module(f"{PACKAGE}.{name}").__doc__ or "")
    made["functions"] = _page_of_functions(functions)
    about["functions"] = ", ".join(f"`{name}`" for name in functions)
    listed = [name for _, names in _GROUPS for name in names]
    assert sorted(listed) == sorted(made), f"_GROUPS and the pages differ: {sorted({*listed} ^ {*made})}"
    made["index"] = _index(about)
    return {f"{name}.md": "\n".join(lines).rstrip() + "\n" for name, lines in made.items()}


def entries() -> list[Entry]:
    """Everything that is public and has a docstring, or should have one."""
    classes, functions, _ = _names()
    package = _package()
    found = []
    for name in classes:
        for cls in (getattr(package, name), *_companions(name)):
            found.append(Entry(cls.__name__, cls.__doc__ or ""))
            if issubclass(cls, enum.Enum) or hasattr(cls, "_fields"):
                continue
            for member, value in _members(cls):
                if _is_method(value) or _is_property(value):
                    found.append(Entry(f"{cls.__name__}.{member}", _own_docstring(getattr(cls, member))))
    found += [Entry(name, _own_docstring(getattr(package, name))) for name in functions]
    for module in ("ops", "emulator"):
        found += [Entry(f"{module}.{n}", _own_docstring(v)) for n, v in _module_functions(module)]
    return found


def main() -> None:
    PAGES.mkdir(exist_ok=True)
    wanted = pages()
    for path in PAGES.glob("*.md"):
        if path.name not in wanted:
            path.unlink()
    for name, text in wanted.items():
        (PAGES / name).write_text(text)
    print(f"{len(wanted)} pages in {PAGES}")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))
    main()
