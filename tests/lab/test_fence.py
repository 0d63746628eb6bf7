"""The kernel's timer in a real kernel: what a frontend that could write reaches, whatever stands still."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kubeadm_registry import paths
from kubeadm_registry.agent.timings import Timings
from tests.lab.namespaces import Namespace, network
from tests.lab.test_guard import ROOT, USERS, rules

T = Timings()
SLACK = 0.8  # seconds that a busy machine may add to what is measured here; less than others hold netlink's lock
PATIENCE = 20.0  # seconds until what flows has been seen to

#: The agent's own timer, told by a line on its standard input, as the agent's user.
AGENT = textwrap.dedent("""
    import json, os, sys, time
    from kubeadm_registry.agent.clock import clock
    from kubeadm_registry.agent.config import Fence
    from kubeadm_registry.agent.timer import Timer
    os.setuid(int(sys.argv[1]))
    timer = Timer(Fence(), float(sys.argv[2]), lambda kind, text: print(text, file=sys.stderr))
    for line in sys.stdin:
        for word in line.split():
            if word.startswith("wait"):
                time.sleep(float(word[4:]))
            else:
                getattr(timer, word)()
        now = clock()
        ago = None if timer.renewed is None else now - timer.renewed
        print(json.dumps({"there": timer.there(now), "renewed": ago}), flush=True)
""")
#: The storage: takes connections and tells how many bytes have come, or were in the kernel, when it is asked.
STORAGE = textwrap.dedent("""
    import fcntl, select, socket, struct, sys, termios
    listener = socket.create_server((sys.argv[1], int(sys.argv[2])))
    print("ready", flush=True)
    peers, total, reading = [], 0, True
    while True:
        ready, _, _ = select.select([sys.stdin, listener, *(peers if reading else ())], [], [])
        for one in ready:
            if one is listener:
                peers.append(listener.accept()[0])
            elif one is sys.stdin:
                word = sys.stdin.readline().strip()
                if not word:
                    sys.exit()
                reading = {"read": True, "pause": False}.get(word, reading)
                kept = sum(struct.unpack("i", fcntl.ioctl(peer, termios.FIONREAD, b"....")) [0] for peer in peers)
                print(total, kept, flush=True)
            else:
                got = one.recv(65536)
                total += len(got)
                if not got:
                    peers.remove(one)
""")
#: A frontend: sends a few bytes every 10 ms, or as much as the kernel takes.
FRONTEND = textwrap.dedent("""
    import os, socket, sys, time
    os.setuid(int(sys.argv[1]))
    door = socket.socket()
    door.bind((sys.argv[5], 0))
    door.connect((sys.argv[2], int(sys.argv[3])))
    print("ready", flush=True)
    while True:
        door.sendall(bytes(int(sys.argv[4])))
        time.sleep(0.01)
""")

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("nft", path="/usr/sbin:/sbin"), reason="needs root and nft"
)


class Node:
    """A network stack with the guard's rules, an agent's timer and a storage."""

    def __init__(self, namespace: Namespace, file: Path, *, address: str, port: int) -> None:
        """*address* and *port* are the storage's."""
        self.namespace = namespace
        self.file = str(file)
        self._where = (address, str(port))
        self._agent = self._start(AGENT, str(USERS[paths.user("agent")]), str(T.timer))
        self._storage = self._start(STORAGE, *self._where)
        assert self._line(self._storage) == "ready"

    def _start(self, code: str, *arguments: str) -> subprocess.Popen[str]:
        return self.namespace.start(
            sys.executable, "-c", code, *arguments, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def _line(self, process: subprocess.Popen[str], said: str = "") -> str:
        assert process.stdin is not None
        assert process.stdout is not None
        if said:
            process.stdin.write(said + "\n")
            process.stdin.flush()
        return process.stdout.readline().strip()

    def agent(self, *words: str) -> dict[str, Any]:
        """Let the agent's timer do *words*; what it knows afterwards."""
        said: dict[str, Any] = json.loads(self._line(self._agent, " ".join(words)))
        return said

    def storage(self, word: str = "look") -> tuple[int, int]:
        """How many bytes the storage has read, and how many wait for it in the kernel."""
        total, kept = self._line(self._storage, word).split()
        return int(total), int(kept)

    def flows(self, seconds: float = PATIENCE) -> bool:
        """Whether bytes reach the storage, or its kernel, within so long."""
        before, until = sum(self.storage()), time.monotonic() + seconds
        while time.monotonic() < until:
            time.sleep(0.02)
            if sum(self.storage()) > before:
                return True
        return False

    def stops_within(self, seconds: float) -> float:
        """After how many seconds no bytes reached the storage any more: for SLACK, so long it may not be run."""
        last = began = time.monotonic()
        while time.monotonic() < last + SLACK:
            if self.flows(0.1):
                last = time.monotonic()
                assert last < began + seconds, f"bytes still flow after {seconds} s"
        return last - began

    @contextmanager
    def frontend(self, user: str = "zot", size: int = 10, source: str = "") -> Iterator[subprocess.Popen[str]]:
        """A process of *user* that sends *size* bytes to the storage every 10 ms, from the address *source*."""
        number = str(USERS.get(paths.user(user), 0))
        process = self._start(FRONTEND, number, *self._where, str(size), source)
        try:
            assert self._line(process) == "ready"
            yield process
        finally:
            process.kill()
            process.wait()

    def close(self) -> None:
        """End agent and storage."""
        for process in (self._agent, self._storage):
            process.kill()
            process.wait()


@contextmanager
def running(file: Path, address: str, port: int) -> Iterator[Node]:
    with network({"node": "10.0.0.11/24"}) as made:
        made["node"].run("ip", "address", "add", f"{paths.S3_ADDRESS}/32", "dev", "lo")
        made["node"].run("nft", "-f", str(file))
        one = Node(made["node"], file, address=address, port=port)
        try:
            yield one
        finally:
            one.close()


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with running(rules(tmp_path), paths.S3_ADDRESS, paths.S3_PORT) as one:
        yield one


def test_a_standby_is_never_cut(node: Node) -> None:
    with node.frontend():
        assert node.flows()
        assert node.agent("ticket") == {"there": True, "renewed": None}
        time.sleep(T.timer + T.ticket)
        assert node.flows()


def test_what_is_armed_ends_by_itself_and_goes_on_when_it_is_renewed(node: Node) -> None:
    with node.frontend():
        began = time.monotonic()
        assert node.agent("ticket", "renew")["renewed"] < SLACK
        assert node.flows()
        node.stops_within(T.timer + 1.0 + SLACK)
        assert time.monotonic() - SLACK - began > T.timer - 0.6, "not before its time"
        assert not node.flows(1.0), "and stays so"
        node.agent("ticket", "renew")
        assert node.flows(), "what waited in the sockets goes on"
        for _ in range(round(2 * T.timer / 0.2)):
            assert node.agent("ticket", "renew", "wait0.2")["there"]
        assert node.flows()


def test_a_renewal_that_comes_late_does_nothing(node: Node) -> None:
    """An agent that stood still between its decision and the renewal: the ticket of that decision has ended."""
    with node.frontend():
        node.agent("ticket", "renew")
        node.stops_within(T.timer + 1.0 + SLACK)
        late = node.agent("ticket", f"wait{T.ticket + 0.1}", "renew")
        assert late["renewed"] > T.timer
        assert not node.flows(0.5)


def test_disarmed_it_reaches_the_storage_without_a_timer(node: Node) -> None:
    with node.frontend():
        node.agent("ticket", "renew")
        node.agent("disarm")
        time.sleep(T.timer + 0.2)
        assert node.flows()


def test_it_is_armed_and_disarmed_without_end(node: Node) -> None:
    """More often than its sets have room: what has ended must leave them."""
    for _ in range(100):
        said = node.agent("ticket", "renew", "disarm", "wait0.03")
        assert said["there"]
    with node.frontend():
        assert node.flows()
        assert node.agent("ticket", "renew")["renewed"] < SLACK
        node.stops_within(T.timer + 1.0 + SLACK)
        node.agent("disarm", "wait0.03")
        assert node.flows()


def test_nobody_else_is_cut_and_nobody_else_can_renew(node: Node) -> None:
    say = "import os, socket, sys; os.setuid(int(sys.argv[1])); s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); "
    say += f"[s.sendto(word, ('{paths.S3_ADDRESS}', {paths.FENCE_PORT})) for word in (b't', b'r')]"
    with node.frontend():
        node.agent("ticket", "renew")
        node.stops_within(T.timer + 1.0 + SLACK)
        node.namespace.python(say, "65534")
        assert not node.flows(0.5)
        with node.frontend("root"):
            assert node.flows(), "root's health checks"


def test_what_a_killed_process_left_in_its_sockets_never_arrives(node: Node) -> None:
    """Not while the timer runs, not when it has ended, and not once the next process may reach the storage."""
    node.storage("pause")
    with node.frontend(size=1 << 24) as process:
        node.agent("ticket", "renew")
        deadline = time.monotonic() + 30
        while not (before := node.storage()[1]) or node.storage()[1] != before:
            assert time.monotonic() < deadline, "the receive buffer never filled"
            time.sleep(0.1)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        held = sum(node.storage())
        node.agent("disarm")
    node.storage("read")
    deadline = time.monotonic() + T.timer + 1
    while time.monotonic() < deadline:
        assert node.storage()[0] <= held
        time.sleep(0.1)
    assert node.storage() == (held, 0), "all that the storage's kernel had, and not a byte more"


def test_without_its_rules_there_is_no_receipt_and_a_reload_forgets_nothing(node: Node) -> None:
    node.agent("ticket", "renew")
    node.namespace.run("nft", "-f", node.file)
    with node.frontend():
        node.stops_within(T.timer + 1.0 + SLACK)
        node.namespace.run("nft", "-f", node.file)
        assert not node.flows(0.5), "it is armed still"
        node.namespace.run("nft", "flush", "ruleset")
        time.sleep(1.0)
        assert node.agent("ticket", "renew") == {"there": False, "renewed": pytest.approx(9, abs=8)}


def test_it_is_renewed_while_others_load_large_rulesets(node: Node, tmp_path: Path) -> None:
    """A transaction of somebody else holds the lock of netlink for a second; the packet's path has no such lock."""
    large = tmp_path / "large.nft"
    addresses = ", ".join(f"10.{one >> 16 & 255}.{one >> 8 & 255}.{one & 255}" for one in range(60000))
    text = f"table inet other {{\nset s {{\ntype ipv4_addr\nelements = {{ {addresses} }}\n}}\n}}\n"
    large.write_text("table inet other\ndelete table inet other\n" + text)
    with node.frontend():
        enough, load = tmp_path / "enough", 'until [ -e "$2" ]; do nft -f "$1" || exit; done'
        loader = node.namespace.start("sh", "-c", load, "load", str(large), str(enough))
        try:
            for _ in range(20):
                said = node.agent("ticket", "renew", "wait0.05")
                assert said["there"]
                assert said["renewed"] < 0.05 + SLACK
            assert loader.poll() is None, "it was renewed meanwhile"
            enough.touch()
            assert loader.wait(timeout=60) == 0
        finally:
            loader.kill()
            loader.wait()
        assert node.flows()


# ---- the retention executor's way to HAProxy, which stands where the storage does above ------------------------------


@pytest.fixture(params=["zot", "distribution"])
def proxy(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Node]:
    with running(rules(tmp_path, request.param), paths.LOOPBACK, paths.REGISTRY_PORT) as one:
        yield one


def test_the_executor_reaches_the_proxy_under_the_lease_only(proxy: Node) -> None:
    assert proxy.agent("ticket", "renew")["renewed"] < SLACK
    with proxy.frontend("retention"):
        assert proxy.flows()
        took = proxy.stops_within(T.timer + 1.0 + SLACK)
        assert took > T.timer - 0.6, "not before its time"
        late = proxy.agent("ticket", f"wait{T.ticket + 0.1}", "renew")
        assert late["renewed"] > T.timer
        assert not proxy.flows(0.5), "a renewal that comes late does nothing"
        proxy.agent("ticket", "renew")
        assert proxy.flows()
        proxy.agent("disarm", "wait0.05")
        assert not proxy.flows(0.5), "it ends at once when the lease is given up"
    for _ in range(100):
        assert proxy.agent("ticket", "renew", "disarm", "wait0.03")["there"]


def test_without_a_lease_the_executor_opens_no_connection_and_others_do(proxy: Node) -> None:
    proxy.agent("ticket")
    say = (
        "import os, socket, sys; os.setuid(int(sys.argv[1])); s = socket.socket(socket.AF_INET6 if ':' in sys.argv[2] "
    )
    say += f"else socket.AF_INET); s.settimeout(0.5); s.connect((sys.argv[2], {paths.REGISTRY_PORT})); print('open')"
    user = str(USERS[paths.user("retention")])
    for address in (paths.LOOPBACK, "10.0.0.11", "10.0.0.12", "::1"):
        attempt = proxy.namespace.python(say, user, address, check=False)
        assert (attempt.stdout, attempt.returncode) == ("", 1), address
        assert "timed out" in attempt.stderr, address
    with proxy.frontend("root"), proxy.frontend("zot"):
        assert proxy.flows()
    assert proxy.namespace.python(say, "65534", paths.LOOPBACK).stdout == "open\n"


def test_what_a_killed_executor_left_in_its_sockets_never_arrives(proxy: Node) -> None:
    """Not while the timer runs, and not when it has ended; what others leave does."""
    for user, arrives in (("retention", False), ("zot", True)):
        proxy.storage("pause")
        proxy.agent("ticket", "renew")
        with proxy.frontend(user, size=1 << 24) as process:
            deadline = time.monotonic() + 30
            while not (before := proxy.storage()[1]) or proxy.storage()[1] != before:
                assert time.monotonic() < deadline, "the receive buffer never filled"
                proxy.agent("ticket", "renew", "wait0.1")
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            held = sum(proxy.storage())
        proxy.storage("read")
        deadline = time.monotonic() + T.timer + 1
        while time.monotonic() < deadline:
            proxy.agent("ticket", "renew", "wait0.1")
            assert arrives or sum(proxy.storage()) <= held
        assert (sum(proxy.storage()) > held) is arrives


def test_what_haproxy_passes_on_for_the_executor_stands_under_the_lease(tmp_path: Path) -> None:
    """A HAProxy that stood still sends what it had in hand; what it sends for others is not held back."""
    with running(rules(tmp_path, "distribution"), paths.LOOPBACK, paths.FRONTEND_PORT) as node:
        node.agent("ticket", "renew")
        with node.frontend("haproxy", source=paths.EXECUTOR_SOURCE):
            assert node.flows()
            node.stops_within(T.timer + 1.0 + SLACK)
            assert not node.flows(0.5)
            node.agent("ticket", "renew")
            assert node.flows()
            node.agent("disarm", "wait0.05")
            assert not node.flows(0.5)
        with node.frontend("haproxy"), node.frontend("haproxy", source=paths.READ_SOURCE):
            assert node.flows()
