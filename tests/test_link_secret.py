"""Links that need a secret: who gets one, and what the others are told. Control messages only."""

from __future__ import annotations

import ast
import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import zmq
from zmq.utils import z85

import torch_llm_datadist as llm_datadist
from tests import instances
from tests.links import linked_pair, pattern, push, start
from tests.nodes import DEADLINE_S, OK, link, unused_port, wait_until
from tests.peers import Peer
from tests.recording_core import Node
from torch_llm_datadist import process_token
from torch_llm_datadist.errors import LLMException, LLMStatusCode, ParamInvalidError
from torch_llm_datadist.link_keys import KeyPair, LinkKeys, derive_keys
from torch_llm_datadist.link_secret import SECRET_VARIABLE
from torch_llm_datadist.options import read_options
from torch_llm_datadist.rank_table import read_comm
from torch_llm_datadist.transfer import RegisterMemStatus

SECRET = "correct horse battery staple"
KEYS = derive_keys(SECRET)
OTHER_KEYS = derive_keys("another horse, another staple")
KEY = "torch_llm_datadist.LinkSecret"


def test_instances_with_the_same_secret_are_linked(node: Callable[..., Node]) -> None:
    server, client = node(1, listens=True, keys=KEYS), node(2, keys=derive_keys(SECRET))
    server.register(1)

    assert link(client, server) == OK

    assert len(client.only_link().remote_caches) == 1
    assert client.links.unlink([1], DEADLINE_S, force=False) == [OK]


@pytest.mark.parametrize(
    ("server_keys", "client_keys", "told", "logged"),
    [
        (KEYS, OTHER_KEYS, "it refused the link_secret", "it has another link_secret"),
        (KEYS, None, "link_secret", "link_secret"),  # who sees it first can say more
        (None, KEYS, "link_secret", "link_secret"),
    ],
)
def test_a_link_with_another_secret_is_refused_by_name_at_both_ends(
    node: Callable[..., Node],
    caplog: pytest.LogCaptureFixture,
    server_keys: LinkKeys | None,
    client_keys: LinkKeys | None,
    told: str,
    logged: str,
) -> None:
    server, client = node(1, listens=True, keys=server_keys), node(2, keys=client_keys)

    code = link(client, server)

    assert code == LLMStatusCode.LLM_LINK_FAILED
    assert [r for r in caplog.records if "linking: cluster 1" in r.getMessage() and told in r.getMessage()]
    assert "no answer in time" not in caplog.text
    wait_until(
        lambda: any(
            "refused a connection" in r.getMessage() and logged in r.getMessage() for r in caplog.records
        )
    )
    assert not server.native.links
    assert not client.native.links


def test_the_key_of_the_client_is_checked_too(node: Callable[..., Node]) -> None:
    """Who learned the server's public key alone is refused all the same."""
    server = node(1, listens=True, keys=KEYS)
    stranger = node(2, keys=LinkKeys(KeyPair(KEYS.server.public, b""), OTHER_KEYS.client))

    assert link(stranger, server) == LLMStatusCode.LLM_LINK_FAILED

    assert not server.native.links


def test_a_client_takes_no_server_without_the_secret(
    node: Callable[..., Node], caplog: pytest.LogCaptureFixture
) -> None:
    """It would tell it where its memory lies."""
    impostor = node(1, listens=True, keys=LinkKeys(OTHER_KEYS.server, KEYS.client))
    client = node(2, keys=KEYS)

    assert link(client, impostor) == LLMStatusCode.LLM_LINK_FAILED

    assert not client.native.links


def test_a_refused_link_does_not_wait_for_its_deadline(node: Callable[..., Node]) -> None:
    import time

    server, client = node(1, listens=True, keys=KEYS), node(2, keys=OTHER_KEYS)
    began = time.monotonic()

    link(client, server)

    assert time.monotonic() - began < DEADLINE_S / 2


def test_messages_are_encrypted(node: Callable[..., Node]) -> None:
    """Read on the way between the two."""
    import socket
    import threading

    from torch_llm_datadist.handshake import Target

    server, client = node(1, listens=True, keys=KEYS), node(2, keys=KEYS)
    server.register(1)
    seen = bytearray()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def pass_on() -> None:
            near, _ = listener.accept()
            with near, socket.create_connection(("127.0.0.1", server.port)) as far:

                def copy(source: socket.socket, sink: socket.socket) -> None:
                    while data := source.recv(65536):
                        seen.extend(data)
                        sink.sendall(data)

                back = threading.Thread(target=copy, args=(far, near), daemon=True)
                back.start()
                copy(near, far)
                far.shutdown(socket.SHUT_RDWR)
                back.join()

        between = threading.Thread(target=pass_on, daemon=True)
        between.start()
        target = Target(1, "127.0.0.1", listener.getsockname()[1])
        process_token.listens(target.ip, target.port)  # as it does there, by way of the server
        assert client.links.link([target], DEADLINE_S) == [OK]
        assert client.links.unlink([1], DEADLINE_S, force=False) == [OK]
        client.links.close(1.0)
        between.join(DEADLINE_S)

    assert b"CURVE" in seen
    assert len(seen) > 1000
    assert not any(word in seen for word in (b"cluster_id", b"welcome", b"page", KEYS.server.public))


def test_members_of_a_two_sided_link_need_the_secret(node: Callable[..., Node]) -> None:
    port = unused_port()
    devices = '{"device_id": "0", "rank_id": "0"}, {"device_id": "1", "rank_id": "1"}'
    table = f'{{"server_list": [{{"server_id": "127.0.0.1", "device": [{devices}]}}]}}'

    def status(keys_of_second: LinkKeys | None) -> RegisterMemStatus:
        members = [node(1, keys=KEYS), node(2, keys=keys_of_second)]
        comms = [
            m.links.begin_comm(read_comm(i, "kv", {1: 0, 2: 1}, table, port), DEADLINE_S)
            for i, m in enumerate(members, 1)
        ]
        wait_until(lambda: members[1].links.comm_status(comms[1]) != RegisterMemStatus.PREPARING)
        found = members[1].links.comm_status(comms[1])
        for m in members:
            m.links.close(0.3)
        return found

    assert status(KEYS) == RegisterMemStatus.OK
    assert status(OTHER_KEYS) == RegisterMemStatus.FAILED


def test_no_thread_is_left_behind(node: Callable[..., Node]) -> None:
    import threading

    before = threading.active_count()
    for _ in range(3):
        server, client = node(1, listens=True, keys=KEYS), node(2, keys=KEYS)
        assert link(client, server) == OK
        server.links.close(1.0)
        client.links.close(1.0)

    assert threading.active_count() == before
    assert not [n for n in os.listdir("/proc/self/task") if _name_of_thread(n).startswith("ZMQbg")][:1]


def _name_of_thread(task: str) -> str:
    try:
        return Path(f"/proc/self/task/{task}/comm").read_text()
    except OSError:
        return ""


def test_bytes_cross_a_link_with_a_secret(peers: Callable[[int], list[Peer]]) -> None:
    client, server, port = linked_pair(peers, {"link_secret": SECRET})
    (stranger,) = peers(1)
    stranger.call(start, 3, 0, {"link_secret": "another horse, another staple"})

    assert stranger.call(instances.link, 2, port) == ["LLM_LINK_FAILED"]
    client.call(instances.wait_linked, 2)
    assert client.call(push, 2, [1, 2], [3, 4]) == "LLM_SUCCESS"

    assert server.call(instances.content)[:, 3:5].equal(pattern(1)[:, 1:3])


# The option.


def test_the_same_secret_gives_the_same_keys_everywhere() -> None:
    """Written down, so that a change of the derivation shows: peers of other releases would be refused."""
    assert KEYS.server.public == b"XM*}C*V4^250^nuySyH([ne<e7pSJ6c4]xJ9:7N2"
    assert KEYS.client.public == b"<>)AgRJjpqE%tTAyb4AF{yJ!b)}uZz-z.iA?a=Hm"
    assert len({KEYS.server.public, KEYS.client.public, OTHER_KEYS.server.public}) == 3
    for pair in (KEYS.server, KEYS.client):
        assert len(z85.decode(pair.private)) == 32
        assert zmq.curve_public(pair.private) == pair.public


def test_the_secret_comes_from_the_option_or_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    config = llm_datadist.LLMConfig()
    config.enable_cache_manager = True
    monkeypatch.setenv(SECRET_VARIABLE, "from the environment")
    assert read_options(config.generate_options()).link_secret == "from the environment"
    config.link_secret = SECRET
    assert read_options(config.generate_options()).link_secret == SECRET
    config.link_secret = None
    monkeypatch.setenv(SECRET_VARIABLE, "")
    assert read_options(config.generate_options()).link_secret is None


def test_the_secret_shows_in_no_repr_no_log_and_no_error(caplog: pytest.LogCaptureFixture) -> None:
    config = llm_datadist.LLMConfig()
    config.link_secret = SECRET
    options = config.generate_options()
    shown = [repr(config.link_secret), repr(options), repr(read_options(options)), repr(KEYS), str(KEYS)]
    for bad in ("short", 12345678901234567890, b"secret as bytes, long"):
        with pytest.raises((LLMException, TypeError)) as in_config:
            config.link_secret = bad  # type: ignore[assignment]
        with pytest.raises((LLMException, TypeError)) as in_options:
            read_options({**options, KEY: bad})
        shown += [str(in_config.value), str(in_options.value)]

    assert options[KEY] == SECRET
    for text in [*shown, caplog.text]:
        assert not any(secret in text for secret in (SECRET, "short", "1234567890", "secret as bytes"))


@pytest.mark.parametrize("length", [1, 15, 1025])
def test_a_secret_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(ParamInvalidError, match=f"has {length} characters, expected 16 to 1024"):
        llm_datadist.LLMConfig().link_secret = "s" * length


def test_listening_to_all_without_a_secret_warns_once(
    node: Callable[..., Node], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "torch_llm_datadist")
    node(1).links.listen("127.0.0.1", 0)
    node(2, keys=KEYS).links.listen("0.0.0.0", 0)
    assert "without a link_secret" not in caplog.text

    open_to_all = node(3)
    open_to_all.links.listen("0.0.0.0", 0)
    open_to_all.links.listen("127.0.0.2", 0)
    open_to_all.links.listen("0.0.0.0", 0)

    assert caplog.text.count("without a link_secret") == 1
    assert "set LLMConfig.link_secret" in caplog.text


# What reads what strangers send.


def test_nothing_is_unpickled_or_evaluated() -> None:
    package = Path(llm_datadist.__file__).parent
    sources = sorted(package.rglob("*.py"))
    assert len(sources) > 50
    for path in sources:
        found = _dangerous(ast.parse(path.read_text()))
        assert not found, f"{path}: {found}"


def test_the_search_for_dangerous_calls_finds_them() -> None:
    for line in (
        "import pickle",
        "from pickle import loads as l",
        "import marshal",
        "eval(x)",
        "exec(x)",
        "torch.load(f)",
        "np.load(f, allow_pickle=True)",
        "yaml.load(f)",
        "__import__(x)",
        "import os; os.system(x)",
    ):
        assert _dangerous(ast.parse(line)), line
    assert not _dangerous(ast.parse("model.eval(); json.loads(x); re.compile(y)"))


_MODULES = {"pickle", "cPickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
_CALLS = {"eval", "exec", "compile", "__import__"}
_METHODS = {("torch", "load"), ("np", "load"), ("numpy", "load"), ("yaml", "load"), ("os", "system")}


def _dangerous(tree: ast.AST) -> list[str]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names if a.name.partition(".")[0] in _MODULES]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in _MODULES:
            found.append(node.module or "")
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _CALLS:
            found.append(node.func.id)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            base = node.func.value
            if isinstance(base, ast.Name) and (base.id, node.func.attr) in _METHODS:
                found.append(f"{base.id}.{node.func.attr}")
    return found
