"""Connections that a node had which died with the virtual IP end by FIN: in the kernel, without hosts."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from kubeadm_registry import paths
from kubeadm_registry.engine.changes import File
from kubeadm_registry.phases import network as rules
from tests.lab.command import wait_until
from tests.lab.fresh import require_machine
from tests.lab.namespaces import Namespace, network
from tests.lab.test_handover import ANNOUNCE, FILE, SERVER, listens
from tests.unit.fake_cluster import FakeCluster

ROOT = Path(__file__).parents[2]
AGENT = 64001
COUNT = 40
#: Opens ``$3`` connections to ``$1``, port ``$2``, has an answer by each and tells their ports; then waits for more and
#: tells how each has ended. What has not after ``$4`` seconds waits. Then the same ports are used once more.
CLIENT = """
import json, selectors, socket, sys, time
address, port, count, patience = sys.argv[1], *map(int, sys.argv[2:5])
def ask(wire):
    wire.sendall(b"?")
    data = b""
    while len(data) < 30004:
        data += wire.recv(65536)
    return data[:4].decode()
wires, selector = [], selectors.DefaultSelector()
for _ in range(count):
    wires.append(socket.create_connection((address, port), 5))
    ask(wires[-1])
own = [wire.getsockname() for wire in wires]
print(json.dumps([one[:2] for one in own]), flush=True)
for wire in wires:
    wire.settimeout(None)
    selector.register(wire, selectors.EVENT_READ)
sys.stdin.readline()
begin, ends = time.monotonic(), {}
while len(ends) < count and time.monotonic() - begin < patience:
    for key, _ in selector.select(0.1):
        try:
            end = "FIN" if not key.fileobj.recv(65536) else "data"
        except OSError as error:
            end = type(error).__name__
        ends[key.fileobj.fileno()] = end, time.monotonic() - begin
        selector.unregister(key.fileobj)
again, abort = [], b"\\1\\0\\0\\0\\0\\0\\0\\0"
for wire, name in zip(wires, own):
    wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, abort)
    wire.close()
    fresh = socket.socket(wire.family)
    fresh.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    fresh.settimeout(5)
    try:
        fresh.bind(name)
        fresh.connect((address, port))
        again.append([ask(fresh), ask(fresh)])
    except OSError as error:
        again.append([repr(error)])
told = list(ends.values()) + [("waits", 0.0)] * (count - len(ends))
print(json.dumps({"ends": told, "again": again}), flush=True)
"""
#: As the agent on the new holder, whose sockets have the user ``$1``: ends the connections to ``$2`` of the clients on
#: standard input, and tells how many have ended.
ENDING = """
import asyncio, ctypes, json, sys
from kubeadm_registry.agent.endings import Ending
assert ctypes.CDLL(None).setfsuid(int(sys.argv[1])) == 0
async def course():
    done = asyncio.get_running_loop().create_future()
    clients = [tuple(one) for one in json.loads(sys.stdin.readline())]
    Ending(sys.argv[2], int(sys.argv[3]), clients, lambda *counts: done.set_result(counts))
    print(json.dumps(await done))
asyncio.run(course())
"""
#: As ufw and firewalld have it.
FIREWALL = f"""
table inet firewall {{
  chain input {{
    type filter hook input priority 10; policy drop;
    iifname "lo" accept
    ct state established,related accept
    ct state invalid drop
    meta l4proto {{ icmp, icmpv6 }} accept
    tcp dport {paths.REGISTRY_PORT} accept
  }}
}}
"""


class Room:
    """Two nodes of a registry and a client elsewhere; the first has the virtual IP."""

    def __init__(self, net: str, hosts: dict[str, Namespace], directory: Path) -> None:
        self.vip = f"{net}10"
        self.hosts = hosts
        cluster = FakeCluster.of(FILE.format(net=net)).cluster
        steps = rules.install(cluster, cluster.hosts[1])
        text = next(one.content.decode() for one in steps if isinstance(one, File) and one.path == paths.GUARD)
        table = text[text.index(f"table inet {paths.ENDING_TABLE}") :]
        self.rules = directory / "ending.nft"
        self.rules.write_text(re.sub(rf"{paths.PREFIX}-agent", str(AGENT), table))

    def settle(self, name: str) -> None:
        """The VIP comes to *name*, without a word of the node that had it."""
        length, nodad = (128, ("nodad",)) if ":" in self.vip else (32, ())
        self.hosts[name].run("ip", "address", "add", f"{self.vip}/{length}", "dev", "eth0", *nodad)
        self.hosts[name].python(ANNOUNCE, self.vip)

    def die(self, name: str) -> None:
        """The node is without power."""
        self.hosts[name].run("ip", "link", "set", "eth0", "down")

    def shield(self) -> None:
        """Load the rules on the second node."""
        self.hosts["cp-2"].run("nft", "-f", str(self.rules))

    def end(self, clients: list[list[Any]]) -> tuple[int, int]:
        """End the connections of *clients* from the second node: how many have ended, and of how many."""
        words = ("env", f"PYTHONPATH={ROOT}", sys.executable, "-c", ENDING, str(AGENT), self.vip)
        said = self.hosts["cp-2"].run(*words, str(paths.REGISTRY_PORT), input=json.dumps(clients) + "\n")
        ended, of = json.loads(said.stdout)
        return ended, of


@pytest.fixture(params=["10.79.0.", "fd79::"], ids=["IPv4", "IPv6"])
def room(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Room]:
    require_machine()
    net: str = request.param
    length = 64 if ":" in net else 24
    places = {name: f"{net}{number}/{length}" for name, number in (("cp-1", 11), ("cp-2", 12), ("client", 14))}
    with network(places) as hosts, ExitStack() as stack:
        room = Room(net, hosts, tmp_path)
        for name in ("cp-1", "cp-2"):
            process = hosts[name].start(sys.executable, "-I", "-c", SERVER, room.vip, str(paths.REGISTRY_PORT), name)
            stack.callback(process.wait)
            stack.callback(process.kill)
            wait_until(f"{name} to listen", partial(listens, hosts[name]), seconds=30)
        room.settle("cp-1")
        yield room


@contextmanager
def waiting(room: Room, place: str, patience: int) -> Iterator[tuple[subprocess.Popen[str], list[list[Any]]]]:
    """Clients on the host *place* that wait for data, and where they connect from."""
    words = (sys.executable, "-I", "-c", CLIENT, room.vip, str(paths.REGISTRY_PORT), str(COUNT), str(patience))
    process = room.hosts[place].start(*words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        yield process, json.loads(process.stdout.readline())
    finally:
        process.kill()
        process.communicate()


def told(process: subprocess.Popen[str]) -> dict[str, Any]:
    """How the connections of those clients ended."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    found: dict[str, Any] = json.loads(process.stdout.readline())
    return found


@pytest.mark.parametrize("place", ["client", "cp-2"], ids=["elsewhere", "on the new holder"])
def test_who_waits_for_a_dead_node_gets_the_end_of_the_stream_from_the_next(room: Room, place: str) -> None:
    room.shield()
    with waiting(room, place, 10) as (process, clients):
        room.die("cp-1")
        room.settle("cp-2")
        assert room.end(clients) == (COUNT, COUNT)
        said = told(process)
    assert {how for how, _ in said["ends"]} == {"FIN"}
    assert {tuple(one) for one in said["again"]} == {("cp-2", "cp-2")}, "the same ports, to the new holder"


def test_firewalls_that_track_connections_let_it_pass(room: Room) -> None:
    """What the new holder gets is a connection that its firewall has never seen, as the client's sees one that is."""
    room.shield()
    for name in ("cp-2", "client"):
        room.hosts[name].run("nft", "-f", "-", input=FIREWALL)
    with waiting(room, "client", 10) as (process, clients):
        room.die("cp-1")
        room.settle("cp-2")
        assert room.end(clients) == (COUNT, COUNT)
        assert {how for how, _ in told(process)["ends"]} == {"FIN"}


def test_who_is_not_told_waits_on(room: Room) -> None:
    """That the test can fail."""
    with waiting(room, "client", 2) as (process, _):
        room.die("cp-1")
        room.settle("cp-2")
        assert {how for how, _ in told(process)["ends"]} == {"waits"}


def test_without_the_rules_they_are_reset(room: Room) -> None:
    """That the rules are needed."""
    with waiting(room, "client", 10) as (process, clients):
        room.die("cp-1")
        room.settle("cp-2")
        ended, of = room.end(clients)
        assert (ended, of) == (0, COUNT)
        assert {how for how, _ in told(process)["ends"]} == {"ConnectionResetError"}


def test_connections_of_the_new_holder_stay(room: Room) -> None:
    """A client that is asked where it stands, and has such a connection here, goes on."""
    room.shield()
    room.die("cp-1")
    room.settle("cp-2")
    with waiting(room, "client", 2) as (process, _):
        assert room.end([["192.0.2.1" if ":" not in room.vip else "2001:db8::1", 40000]]) == (0, 1)
        assert {how for how, _ in told(process)["ends"]} == {"waits"}
