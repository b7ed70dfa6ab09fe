"""The table of messages: each row names the value, what was expected, how things stand and what to do.

Those who raise with a row give it exactly the values that it names.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from torch_llm_datadist import LLMException, LLMStatusCode, _native, messages
from torch_llm_datadist.messages import Row, refusal, rows

ROOT = Path(__file__).parents[1]
# What a caller can be told of the link. Nothing else may stand in the table.
STATES = {
    "Nothing was sent; the link is still usable",
    "Nothing was sent; the link and the ticket are still usable",
    "Nothing was sent; the link and the other tasks are still usable",
    "Nothing was sent; this link is down, other links are not affected",
    "Nothing was sent; there is no link",
    "No link was made; other links are as they were",
    "Nothing was registered; links are as they were",
    "Nothing was changed; links are as they were",
    "Nothing was copied; links are as they were",
    "The link is still usable",
    "What it had queued may still write; the link is still usable",
    "What has arrived is of no use; the link is still usable",
    "Nothing of it is queued any more; the link is still usable",
    "This link is down, other links are not affected",
    "The links of this device are down, those of other processes are not affected",
}
EXPECTED = (
    r"expected|has|serves|takes|sends|can$|fills|sent once|says|issued|closed|pull is from|desc|there is"
)
# Who asked, where it lies and why: no values that can be wrong.
CONTEXT = {"asked", "name", "peer", "cluster_id", "why", "how", "at", "type", "expected", "list", "where"}


def marked(row: Row) -> dict[str, str]:
    return {name: f"<{name}>" for name in row.values}


def rendered(row: Row) -> str:
    error = refusal(row.name, **marked(row))
    return str(error)


def check(row: Row) -> None:
    """What each row must have; raises AssertionError."""
    text = rendered(row)
    wrong = set(re.findall(r"{(\w+)}", row.what)) - CONTEXT
    assert wrong or row.kind == "LLM_NOT_YET_LINK", "no value that was wrong is named"
    for name in row.values:
        assert f"<{name}>" in text
    assert re.search(EXPECTED, row.expected), "nothing says what was expected"
    assert row.state in STATES
    assert len(row.next.split()) >= 2, "no next step"
    next_step = re.sub(r"{(\w+)}", r"<\1>", row.next)
    assert text.endswith(f"{row.state}: {next_step}.")
    assert "{" not in text


@pytest.mark.parametrize("name", rows())
def test_every_message_names_the_value_what_was_expected_the_link_and_the_next_step(name: str) -> None:
    check(rows()[name])


GOOD = Row("x", "LLM_PARAM_INVALID", "{asked}: {value}", "expected 1", "The link is still usable", "give 1")


@pytest.mark.parametrize(
    "broken",
    [
        GOOD._replace(what="{asked}: bad"),
        GOOD._replace(expected="bad"),
        GOOD._replace(state="Oops"),
        GOOD._replace(next=""),
    ],
)
def test_a_row_that_lacks_a_part_is_found(broken: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "rows", lambda: {"x": broken})

    with pytest.raises(AssertionError):
        check(broken)


@pytest.mark.parametrize("name", rows())
def test_the_exception_carries_the_code_of_its_row(name: str) -> None:
    row = rows()[name]

    error = refusal(name, **marked(row))

    if isinstance(error, LLMException):
        assert error.status_code == LLMStatusCode[row.kind]
    else:
        assert type(error).__name__ == row.kind


def test_the_core_has_the_same_table_and_says_it_in_the_same_words() -> None:
    native = _native.load()
    own = list(rows().values())

    assert [Row(*row) for row in native.message_rows()] == own
    for row in own:
        assert native.render_message(row.name, marked(row)) == rendered(row)


# What makes an exception, or a code and a text, of a row.
FROM_THE_TABLE = {"refusal", "failure", "coded"}


def calls_in_python() -> Iterator[tuple[str, str, set[str]]]:
    """Where, which row, which values."""
    for path in sorted((ROOT / "torch_llm_datadist").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id in FROM_THE_TABLE
            ):
                name = node.args[-1]
                if path.name == "messages.py":
                    continue
                assert isinstance(name, ast.Constant), f"{path.name}:{node.lineno}: the row is no constant"
                yield f"{path.name}:{node.lineno}", str(name.value), {k.arg or "**" for k in node.keywords}


def values_listed(text: str, begin: int) -> set[str]:
    """The names of the values in the braces that were opened right before ``begin``."""
    depth, end = 1, begin
    while depth:
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        end += 1
    return set(re.findall(r'\{"(\w+)",', text[begin - 1 : end]))


def calls_in_the_core() -> Iterator[tuple[str, str, set[str]]]:
    for path in sorted({*(ROOT / "csrc").rglob("*.cpp"), *(ROOT / "csrc").rglob("*.h")}):
        text = path.read_text()
        for found in re.finditer(r"Message::(\w+),\s*(\{|\w+\))", text):
            line = text.count("\n", 0, found.start()) + 1
            listed = found if found[2] == "{" else re.search(rf"\b{found[2][:-1]}(?: = )?\{{", text)
            if listed is None:
                continue  # a message of another kind
            yield f"{path.name}:{line}", found[1], values_listed(text, listed.end())


def test_who_raises_gives_a_message_exactly_the_values_that_it_names() -> None:
    calls = [*calls_in_python(), *calls_in_the_core()]

    assert len(calls) > 200
    for where, name, values in calls:
        assert name in rows(), f"{where}: there is no row {name}"
        assert values == rows()[name].values, f"{where}: {name}"
    unused = rows().keys() - {name for _, name, _ in calls}
    assert not unused, f"nobody says {sorted(unused)}"


# Files whose errors are not those of a caller of the library.
TOOLS = {"demo", "doctor", "emulator"}
# What else is raised, by the file and the beginning of the source, and why it is not in the table.
IN_PYTHON = {
    "__init__.py: AttributeError(f'module {__name__!r}": "Python asks for a name",
    "_native.py: ImportError('the native core": "there is no core, so no table",
    "_native.py: ImportError(f'torch_llm_datadist needs": "before there is a core",
    "_native.py: ImportError(f'torch_llm_datadist was built": "before there is a core",
    "as_llm_datadist.py: AttributeError(": "Python asks for a name",
    "as_llm_datadist.py: RuntimeError(f'{name} was imported": "a tool that runs a script",
    "data_type.py: AttributeError(": "Python asks for a name",
    "data_type.py: KeyError(": "the protocol of a mapping",
    "cluster.py: ValueError": "caught right there",
    "instance_calls.py: RuntimeError('llm datadist is not initialized')": "the original's words",
    "loop.py: RuntimeError('the control thread has ended')": "caught by those who call it",
    # Rows, to which something is added.
    "allocated_caches.py: OutOfMemoryError(f'{asked}: {error}')": "says who asked",
    "registration.py: ParamInvalidError(f'{asked}: {error}')": "says who asked",
    "control.py: LinkFailedError(str(error).replace(": "says who asked",
    "cache_store.py: type(error)(f'{asked}: {error}. Nothing was registered": "says who asked",
    "blocking_call.py: renamed": "says who asked",
    "blocking_call.py: unfinished(": "adds the blocks in doubt",
    "doubtful_blocks.py: _in_doubt(": "adds the blocks in doubt",
    "doubtful_blocks.py: _may_be_read(": "adds the blocks in doubt",
    "arrivals.py: class_for_code(code)(f'{asked}: cluster": "what a push ended with",
    "binding.py: class_for_code(found.code)(f'wait_taken": "what a publication ended with",
    "checks.py: _wrong_type(": "a row of the table",
    "cluster_links.py: group_failure(": "a row of the table",
    "peer_caches.py: no_such_cache(": "a row of the table",
    "memory_pool.py: self._is_full(": "a row of the table",
    # What a peer has sent: the message is dropped or the link ended, which the log says.
    "announcements.py: ValueError(f'{peer} ": "ends the link",
    "wire.py: MalformedMessageError(": "drops the message",
    "wire.py: OtherProtocolError(": "ends the connection",
}
IN_THE_CORE = {
    "acl/check.cpp": "a call of the runtime that failed, by its name and code",
    "acl/symbols.cpp": "the runtime is not there",
    "error.h": "the check itself",
    "messages/messages.cpp": "the table itself",
    "python/error.cpp": "for the test of the table",
    "python/flow.cpp": "for tests of single parts",
    # Reasons: they end a transfer or a link, whose row says them behind "is down" or "the transfer with".
    "link/feeder.cpp": "the link's context stopped",
    "link/packed_push.cpp": "the receiver's staging is too small",
    "link/relay.cpp": "the device is shut down",
    "link/staging.cpp": "the peer has no staging",
    "link/transfer.cpp: there was no stream to carry it": "a reason likewise",
    "transport/engine/engine_transport.cpp": "an engine",
    "transport/engine/loopback.cpp": "an engine",
    "transport/engine/placeholders.cpp": "an engine",
    "transport/engine/pump.cpp": "an engine",
    "transport/engine/pump_messages.cpp": "what a peer may not say to an engine",
    "transport/engine/copies.cpp": "an engine",
    "transport/hixl/hixl.cpp": "an engine",
    "transport/hixl/regions.cpp": "an engine",
    "transport/nixl/nixl_engine.cpp": "an engine",
    "transport/nixl/symbols.cpp": "why an engine is not there",
    "transport/mapped/fabric.cpp": "memory that cannot be made or mapped",
    "transport/mapped/host_memory.cpp": "memory that cannot be made or mapped",
    "transport/mapped/mapped.cpp": "memory that cannot be made or mapped",
    # Only the control thread calls these, with what a peer has sent: they end the link.
    "link/forked.cpp: pthread_atfork": "the process has no memory",
    "link/instance.cpp: open_link": "the control thread",
    "link/link.cpp: connect_link": "the control thread",
    "link/link.cpp: render(Message::link_is_down": "a row, with the code that the link ended with",
    "python/instance.cpp: add_remote_cache": "the control thread",
    "python/instance.cpp: Segment": "the control thread",
    "python/packed.cpp: learn_staging": "the control thread",
    "python/memory.cpp: tensor_from_address": "called with addresses that were looked at",
    "python/memory.cpp: allocate_fabric": "called with sizes that were looked at",
}


# How a transfer ends, or a link: what is given to these reaches a caller as it is, unless a row takes it in.
ENDS = re.compile(
    r"(?<![\w:.>])end\(|(?<![\w:])(?:fail|Trouble|die|cancel|abandon|give_up|retire|peer_process_ended|refused)\("
    r"|(?:cancelled_|why_|bad_|failure_|given_up_|refused_|outcomes_\[\w+\]) = "
)
REASONS = {
    "link/binding.cpp": "taken in by layer_was_not_pushed, or layers_were_not_awaited",
    "link/feeder.cpp: its stream was given up": "taken in by transfer_failed, where one is left",
    "link/feeder.cpp: a task of the link's stream": "taken in by transfer_failed",
    "link/engine.cpp: its process ended": "taken in by link_was_lost, and link_is_down",
    "link/engine.cpp: the watchdog of device": "likewise",
    "link/link.cpp: the link was closed here": "likewise",
    "link/link.cpp: a task on its stream failed": "likewise",
    "link/link.cpp: a kernel or a copy that scatters": "likewise",
    "link/link.cpp: no sign of life": "likewise",
    "link/link.cpp: nothing has come over": "likewise",
    "link/link_mail.cpp: the peer closed it": "likewise",
    "link/link_streams.cpp: what landed in its staging": "likewise",
    "link/relay.cpp: its stream is gone": "taken in by layers_were_not_released",
    "link/ticket.cpp: : ": "a row, behind who said so",
    "link/transfer.cpp: discarded": "the caller's own wish, of which no call is told",
    "link/round.cpp: another transfer of the same bind was refused": "the bind that raises says why",
    "ops.cpp: it was refused before it began": "the op that raises says why",
    "python/tasks.cpp: the task was freed before it was bound": "nobody is left who could ask",
}


def up_to_its_end(source: str, begin: int) -> int:
    """Behind the parenthesis that closes the one right before ``begin``, or at the end of the statement."""
    depth, end = 1, begin
    while depth and source[end] != ";":
        depth += {"(": 1, ")": -1}.get(source[end], 0)
        end += 1
    return end


def without_rows(source: str) -> str:
    """The source of arguments, less what a row of the table takes in."""
    while found := re.search(r"render\(", source):
        source = source[: found.start()] + source[up_to_its_end(source + ";", found.end()) :]
    return source


def bare_reasons_in_the_core() -> Iterator[str]:
    for path in sorted({*(ROOT / "csrc").rglob("*.cpp"), *(ROOT / "csrc").rglob("*.h")}):
        name = str(path.relative_to(ROOT / "csrc"))
        if not name.startswith(("link/", "ops", "python/")):
            continue
        text = path.read_text()
        for found in ENDS.finditer(text):
            given = text[found.end() : up_to_its_end(text, found.end())]
            for literal in re.findall(r'"([^"]+)"', without_rows(given))[:1]:
                yield f"{name}: {literal}"


def other_raises_in_python() -> Iterator[str]:
    for path in sorted((ROOT / "torch_llm_datadist").rglob("*.py")):
        if TOOLS.intersection(path.parts) or path.name == "__main__.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Raise) or node.exc is None:
                continue
            call = node.exc
            made_by = getattr(getattr(call, "func", None), "id", "")
            if made_by not in FROM_THE_TABLE:
                yield f"{path.name}: {ast.unparse(call)}"


def other_raises_in_the_core() -> Iterator[str]:
    for path in sorted({*(ROOT / "csrc").rglob("*.cpp"), *(ROOT / "csrc").rglob("*.h")}):
        name = str(path.relative_to(ROOT / "csrc"))
        if name.startswith(("emulator", "hixl_shim", "tests", "fuzz")):
            continue
        text = path.read_text()
        for found in re.finditer(
            r"(?<![\w:])(?:require\(|throw Error\(|TORCH_CHECK\()(.*?);\n", text, re.DOTALL
        ):
            said = re.search(r'"([^"]*)"|render\(Message::\w+', found[1])
            yield f"{name}: {(said[1] or said[0]) if said else ''}"


@pytest.mark.parametrize(
    ("found", "known"),
    [
        (other_raises_in_python, IN_PYTHON),
        (other_raises_in_the_core, IN_THE_CORE),
        (bare_reasons_in_the_core, REASONS),
    ],
)
def test_whatever_is_raised_comes_from_the_table_or_is_named_here(
    found: Callable[[], Iterator[str]], known: dict[str, str]
) -> None:
    raises = list(found())

    strangers = [text for text in raises if not text.startswith(tuple(known))]
    assert not strangers
    assert [name for name in known if not any(text.startswith(name) for text in raises)] == []
