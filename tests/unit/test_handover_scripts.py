"""What a planned move runs on a node: sockets that read their end, and how long an address does not serve."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import pytest

from kubeadm_registry import paths, pki
from kubeadm_registry.agent import gap, moving, reopen
from kubeadm_registry.agent.clock import clock
from kubeadm_registry.components import handover
from tests.unit.fake_cluster import authority
from tests.unit.here import here, stub
from tests.unit.real_haproxy import PUSH, nodes

DISTRIBUTION = (Path(__file__).parents[1] / "golden" / "ipv4-distribution" / "cluster.yaml").read_text()

#: Reads from ADDRESS and PORT to the end, and says how much came.
READER = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2]))) as wire:
    print(wire.recv(100).decode(), flush=True)
    print(len(wire.recv(100)), flush=True)
"""


def says(module: Path | str | None, *words: str) -> dict[str, object]:
    """What the module says when a node runs it, by its source alone."""
    source = Path(str(module)).read_text()
    done = subprocess.run([sys.executable, "-I", "-c", source, *words], capture_output=True, check=True, timeout=30)
    found: dict[str, object] = json.loads(done.stdout)
    return found


# ---- what the agent is asked ---------------------------------------------------------------------------------------


def test_root_writes_nowhere_else_by_a_link_in_the_agents_directory(tmp_path: Path) -> None:
    folder, other = tmp_path / "agent", tmp_path / "other"
    folder.mkdir()
    other.write_text("of root")
    (folder / "move.kubeadm-registry").symlink_to(other)
    move = folder / "move"
    argv = ["sh", "-c", handover._ASK, "ask", str(move), "cp-2", "30", json.dumps(moving.FORMAT.stamp()), "false"]
    subprocess.run(argv, check=True, timeout=30)
    assert other.read_text() == "of root"
    assert move.stat().st_mode & 0o777 == 0o644
    assert moving.asked(move, clock()) == moving.Request("cp-2")
    assert sorted(one.name for one in folder.iterdir()) == ["move", "move.kubeadm-registry"]


# ---- own connections -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_a_process_reads_the_end_of_its_connection_and_the_server_notices_nothing(address: str) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        server = socket.create_server((address, 0), family=family)
    except OSError:
        pytest.skip("this machine has one family")
    port = str(server.getsockname()[1])
    with server, subprocess.Popen([sys.executable, "-c", READER, address, port], stdout=subprocess.PIPE) as reader:
        assert reader.stdout is not None
        served, _ = server.accept()
        with served:
            served.sendall(b"begun")
            assert reader.stdout.readline() == b"begun\n"
            found = says(reopen.__file__, "own", port, address)
            assert found == {"ended": 1, "trouble": []}
            assert reader.stdout.readline() == b"0\n", "it is still read"
            reader.wait(10)


def test_connections_to_elsewhere_go_on() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client, server.accept()[0] as served:
            for words in ((str(port), "127.0.0.2"), (str(port % 60000 + 1), "127.0.0.1")):
                assert says(reopen.__file__, "own", *words) == {"ended": 0, "trouble": []}
            served.sendall(b"on")
            assert client.recv(10) == b"on"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may make a socket transparent")
def test_what_was_accepted_and_what_will_be_may_be_sent_when_the_address_has_left() -> None:
    def transparent(wire: socket.socket) -> int:
        return wire.getsockopt(*reopen.TRANSPARENT[socket.AF_INET])

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client, server.accept()[0] as served:
            assert says(reopen.__file__, "keep", str(port), "127.0.0.1") == {"ended": 2, "trouble": []}
            with socket.create_connection(("127.0.0.1", port)), server.accept()[0] as later:
                assert [transparent(one) for one in (client, server, served, later)] == [0, 1, 1, 1]


@pytest.mark.parametrize(
    ("code", "scope", "words"),
    [
        (errno.EPERM, "3\n", "by kernel.yama.ptrace_scope = 3: set it to 2 where it is set at boot"),
        (errno.EPERM, "1\n", ""),
        (errno.EPERM, None, ""),
        (errno.EACCES, "3\n", ""),
    ],
)
def test_a_kernel_that_lets_nobody_copy_a_socket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, scope: str | None, words: str
) -> None:
    """To run the command again, as the hint has it, never helps there."""
    monkeypatch.setattr(reopen, "YAMA", tmp_path / "ptrace_scope")
    if scope is not None:
        reopen.YAMA.write_text(scope)
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: SimpleNamespace(syscall=lambda *_: -1))
    monkeypatch.setattr(ctypes, "get_errno", lambda: code)
    with pytest.raises(OSError, match=re.escape(os.strerror(code))) as raised:
        reopen.copied(os.getpid(), 0)
    assert raised.value.errno == code
    assert words in str(raised.value)
    assert bool(words) == ("yama" in str(raised.value))


# ---- connections that are kept for later ----------------------------------------------------------------------------


def asked(wire: ssl.SSLSocket) -> bytes:
    wire.sendall(b"GET /v2/a/manifests/v1 HTTP/1.1\r\nHost: x\r\n\r\n")
    return wire.recv(1000)


def test_only_a_connection_that_nobody_uses_is_ended() -> None:
    """By a real HAProxy: one client keeps a connection for later, one waits for an answer, one has just got one."""
    with nodes(DISTRIBUTION, "cp-1") as [node], node.connect() as kept, node.connect() as waiting:
        assert asked(kept).startswith(b"HTTP/1.1 200")
        # Held by the proxy, as a blob is that takes long to be completed.
        node.tell(f"set map {node.folder}/etc/haproxy/pushes.map closed {int(time.time()) + 60}")
        head = "POST /v2/a/blobs/uploads/ HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n"
        waiting.sendall((head + "".join(f"{k}: {v}\r\n" for k, v in PUSH.items()) + "\r\n").encode())
        time.sleep(4.2)  # so long nothing comes or goes; until it is looked at, a Python starts
        with node.connect() as fresh:
            assert asked(fresh).startswith(b"HTTP/1.1 200")
            words = ("4", str(node.folder / "run" / "1.sock"), node.address)
            assert says(reopen.__file__, "idle", str(paths.REGISTRY_PORT), *words) == {"ended": 1, "trouble": []}
            with suppress(ssl.SSLEOFError):  # without TLS's own farewell
                assert kept.recv(10) == b""
            assert asked(fresh).startswith(b"HTTP/1.1 200")
        node.tell(f"set map {node.folder}/etc/haproxy/pushes.map closed 0")
        assert waiting.recv(1000).startswith(b"HTTP/1.1 202")


# ---- the gap -------------------------------------------------------------------------------------------------------


@contextmanager
def served(folder: Path, port: int = 0) -> Iterator[tuple[int, threading.Event]]:
    """Something that answers over TLS at a port of loopback, and whether it has answered."""
    pair = pki.issue(authority(), "cp-1", ["localhost", "127.0.0.1"])
    (folder / "node.pem").write_text(pair.certificate + pair.key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "node.pem")
    answered, ended = threading.Event(), threading.Event()

    def answer(wire: socket.socket) -> None:
        try:
            with context.wrap_socket(wire, server_side=True) as secure:
                secure.recv(1000)
                secure.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                answered.set()
        except OSError:
            return

    def serve(server: socket.socket) -> None:
        while not ended.is_set():
            try:
                wire, _ = server.accept()
            except TimeoutError:
                continue
            threading.Thread(target=answer, args=(wire,), daemon=True).start()

    with socket.create_server(("127.0.0.1", port)) as server:
        server.settimeout(0.1)
        thread = threading.Thread(target=serve, args=(server,), daemon=True)
        thread.start()
        try:
            yield server.getsockname()[1], answered
        finally:
            ended.set()
            thread.join()


def test_the_longest_time_without_an_answer_is_told(tmp_path: Path) -> None:
    mark, begun = tmp_path / "move", time.monotonic()
    with served(tmp_path) as (port, answered):
        argv = [sys.executable, "-I", "-c", Path(gap.__file__).read_text(), "127.0.0.1", str(port), str(mark), "60"]
        process = subprocess.Popen(argv, stdout=subprocess.PIPE)
        mark.touch()
        assert answered.wait(30)
    time.sleep(2.0)  # what is measured; who is not run for a while reads the answer before it late
    with served(tmp_path, port) as (_, answered):
        assert answered.wait(30)
        mark.unlink()
        said, _ = process.communicate(timeout=20)
    found = json.loads(said)
    assert 1.0 < found["gap"] < time.monotonic() - begun
    assert found["failed"] > 5


def test_what_is_never_asked_for_ends_by_itself(tmp_path: Path) -> None:
    found = says(gap.__file__, "127.0.0.1", "1", str(tmp_path / "none"), "0.2")
    assert found["failed"] == found["asked"] == 1


def test_it_goes_on_by_itself_and_holds_no_lock(tmp_path: Path) -> None:
    """A host is asked one thing at a time, and its lock ends with the run."""
    out, gate, lock = tmp_path / "out", tmp_path / "gate", tmp_path / "lock"
    os.mkfifo(gate)
    inner = ("sh", "-c", 'read -r line < "$1"; echo "$line"', "inner", str(gate))
    held = 'exec 9>"$1"; shift; flock -n 9 && sh -c "$@"'
    words = ("sh", "-c", held, "held", str(lock), handover._BACKGROUND, "measure", str(out), *inner)
    subprocess.run(words, check=True, timeout=30)
    subprocess.run(["flock", "-n", str(lock), "true"], check=True, timeout=30)
    gate.write_text("said\n")
    end = time.monotonic() + 30
    while not out.exists() or out.read_text() != "said\n":
        assert time.monotonic() < end
        time.sleep(0.01)


def test_the_agents_user_leads_a_question_nowhere_by_a_link(tmp_path: Path) -> None:
    """It lies in the agent's directory, and root writes it."""
    victim, folder = tmp_path / "victim", tmp_path / "agent"
    victim.write_text("not yours")
    victim.chmod(0o600)
    folder.mkdir()
    swap = f'new=$({shutil.which("mktemp")} "$@"); ln -s -f {victim} "$new"; echo "$new"'
    stub(tmp_path / "bin", "mktemp", swap)
    words = (f"{folder}/move", "cp-2", "5", json.dumps(moving.FORMAT.stamp()), "false")
    assert not here(tmp_path / "bin").query("sh", "-c", handover._ASK, "ask", *words).ok
    assert (victim.read_text(), victim.stat().st_mode & 0o777) == ("not yours", 0o600)
    assert here().query("sh", "-c", handover._ASK, "ask", *words).ok
    assert json.loads((folder / "move").read_text())["to"] == "cp-2"
    assert (folder / "move").stat().st_mode & 0o777 == 0o644
