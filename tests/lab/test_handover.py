"""Connections stay with the server that had the virtual IP, whoever has it afterwards: by the kernel, without hosts."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from kubeadm_registry import config, paths
from kubeadm_registry.cluster import Cluster
from kubeadm_registry.components import handover
from kubeadm_registry.result import Result
from kubeadm_registry.secrets import Vault
from kubeadm_registry.transport.host import Host
from tests.lab.command import wait_until
from tests.lab.fresh import require_machine
from tests.lab.namespaces import Namespace, network

NAMES = ("cp-1", "cp-2", "cp-3")
FILE = """
apiVersion: kubeadm-registry.dev/v1alpha1
kind: RegistryCluster
metadata: {{name: registry}}
spec:
  nodes:
    - {{name: cp-1, address: "{net}11"}}
    - {{name: cp-2, address: "{net}12"}}
    - {{name: cp-3, address: "{net}13"}}
  vip: {{address: "{net}10"}}
"""
#: Answers each byte with this server's name, however long the connection lasts, for an address that may be elsewhere:
#: as HAProxy does with `transparent` and without CAP_NET_ADMIN, by IP_FREEBIND.
SERVER = """
import socket, sys, threading
address, port, name = sys.argv[1:]
family, level, option = (socket.AF_INET6, 41, 78) if ":" in address else (socket.AF_INET, 0, 15)
server = socket.socket(family)
server.setsockopt(level, option, 1)
server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
server.bind((address, int(port)))
server.listen(100)
def serve(wire):
    with wire:
        while wire.recv(65536):
            wire.sendall(name.encode() + bytes(30000))
while True:
    threading.Thread(target=serve, args=server.accept()[:1], daemon=True).start()
"""
#: Asks over one connection, and over a new one each time; notes whom it reached. One line of input ends it.
CLIENT = """
import json, select, socket, sys, time
address, port = sys.argv[1], int(sys.argv[2])
def ask(wire):
    wire.sendall(bytes(1000))
    data = b""
    while len(data) < 30004:
        piece = wire.recv(65536)
        if not piece:
            raise OSError("end of file")
        data += piece
    return data[:4].decode()
def dial():
    return socket.create_connection((address, port), 5)
kept, seen, longest = dial(), [], {"kept": 0.0, "new": 0.0}
print(ask(kept), flush=True)
while not select.select([sys.stdin], [], [], 0.01)[0]:
    for kind in ("kept", "new"):
        begin = time.monotonic()
        try:
            if kind == "kept":
                by = ask(kept)
            else:
                with dial() as wire:
                    by = ask(wire)
        except OSError as error:
            by = repr(error)
        longest[kind] = max(longest[kind], time.monotonic() - begin)
        if not seen or [kind, by] not in seen[-2:]:
            seen.append([kind, by])
print(json.dumps({"seen": seen, "longest": longest}))
"""
#: Tells the neighbours that the address is here, as keepalived does.
ANNOUNCE = """
import fcntl, socket, struct, sys
wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
wire.bind(("eth0", 0))
own = fcntl.ioctl(wire, 0x8927, struct.pack("256s", b"eth0"))[18:24]
if ":" not in sys.argv[1]:
    vip = socket.inet_aton(sys.argv[1])
    for code in (1, 2):
        arp = struct.pack("!HHBBH", 1, 0x800, 6, 4, code) + own + vip + b"\\xff" * 6 + vip
        wire.send(b"\\xff" * 6 + own + b"\\x08\\x06" + arp)
else:
    vip, all_nodes = (socket.inet_pton(socket.AF_INET6, one) for one in (sys.argv[1], "ff02::1"))
    body = struct.pack("!BBHI", 136, 0, 0, 0x20000000) + vip + b"\\x02\\x01" + own
    words = struct.unpack("!36H", vip + all_nodes + struct.pack("!II", len(body), 58) + body)
    total = sum(words)
    total = (total >> 16) + (total & 0xffff)
    total = ~(total + (total >> 16)) & 0xffff
    head = struct.pack("!IHBB", 0x60000000, len(body), 58, 255) + vip + all_nodes
    wire.send(b"\\x33\\x33\\0\\0\\0\\1" + own + b"\\x86\\xdd" + head + body[:2] + struct.pack("!H", total) + body[4:])
"""


class Inside:
    """A Transport to a namespace, where nothing needs systemd but the timer that ends it all."""

    def __init__(self, where: Namespace, programs: Path) -> None:
        self._where = where
        self._programs = programs

    def run(self, argv: Sequence[str], *, stdin: bytes = b"", timeout: float = 60) -> Result:
        command = self._where.argv("env", f"PATH={self._programs}:/usr/sbin:/usr/bin:/sbin:/bin", *argv)
        done = subprocess.run(command, input=stdin, capture_output=True, timeout=timeout, check=False)
        return Result(tuple(argv), done.returncode, done.stdout, done.stderr)

    def upload(self, source: Path, path: str) -> None:
        raise NotImplementedError

    def lock(self, who: str) -> str | None:
        return None

    def dial(self, address: str, port: int) -> tuple[str, int]:
        return address, port

    def close(self) -> None:
        """Nothing is open."""


class Room:
    """Three servers, and clients on all of them and elsewhere."""

    def __init__(self, net: str, hosts: dict[str, Namespace], programs: Path) -> None:
        self.vip = f"{net}10"
        self.hosts = hosts
        made = config.parse(FILE.format(net=net), "cluster.yaml")
        reached = [Host(one.name, one.address, Inside(hosts[one.name], programs)) for one in made.spec.nodes]
        self.cluster = Cluster(made, tuple(reached), Vault("registry", list(NAMES), {}), {})
        self.holder = ""

    def host(self, name: str) -> Host:
        return next(host for host in self.cluster.hosts if host.name == name)

    def address(self, verb: str, name: str) -> None:
        nodad = ("nodad",) if ":" in self.vip and verb == "add" else ()
        length = 128 if ":" in self.vip else 32
        self.hosts[name].run("ip", "address", verb, f"{self.vip}/{length}", "dev", "eth0", *nodad)

    def settle(self, name: str) -> None:
        """The VIP comes to *name*."""
        self.address("add", name)
        self.hosts[name].python(ANNOUNCE, self.vip)
        self.holder = name

    def move(self, name: str) -> None:
        """As ``vip move`` does."""
        old = self.host(self.holder)
        handover.pass_on(self.cluster, self.host(name), old)
        handover.stay(self.cluster, old)
        assert handover.passes_on(self.cluster, self.host(name), old)
        assert handover.stays(self.cluster, old)
        self.address("del", self.holder)
        self.settle(name)
        for other in self.cluster.hosts:
            if other.name != name:
                handover.pass_no_more(other)


@pytest.fixture(params=["10.79.0.", "fd79::"], ids=["IPv4", "IPv6"])
def room(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Room]:
    require_machine()
    net: str = request.param
    for name in ("systemd-run", "systemctl"):
        (tmp_path / name).write_text("#!/bin/sh\nexit 0\n")
        (tmp_path / name).chmod(0o755)
    length = 64 if ":" in net else 24
    places = {
        name: f"{net}{number}/{length}" for name, number in zip((*NAMES, "client"), (11, 12, 13, 14), strict=True)
    }
    with network(places) as hosts, ExitStack() as stack:
        room = Room(net, hosts, tmp_path)
        for name in NAMES:
            process = hosts[name].start(sys.executable, "-I", "-c", SERVER, room.vip, str(paths.REGISTRY_PORT), name)
            stack.callback(process.wait)
            stack.callback(process.kill)
            wait_until(f"{name} to listen", partial(listens, hosts[name]), seconds=30)
        room.settle("cp-1")
        yield room


def listens(host: Namespace) -> str:
    """Who listens on the registry's port there, as ss says it; empty if nobody does."""
    return host.run("ss", "-Hltn", "sport", "=", f":{paths.REGISTRY_PORT}").stdout


def begun(room: Room, name: str = "client") -> subprocess.Popen[str]:
    """A client on the host *name* that has reached the holder."""
    words = (sys.executable, "-I", "-c", CLIENT, room.vip, str(paths.REGISTRY_PORT))
    client = room.hosts[name].start(*words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert client.stdout is not None
    assert client.stdout.readline() == f"{room.holder}\n"
    return client


def ended(client: subprocess.Popen[str]) -> tuple[list[list[str]], dict[str, float]]:
    """Whom it reached by each kind of connection, in order, and the longest time that it waited."""
    said, _ = client.communicate("\n", timeout=30)
    found = json.loads(said)
    return found["seen"], found["longest"]


def test_connections_go_on_where_they_began_while_the_vip_goes_round(room: Room) -> None:
    clients = [begun(room)]
    for name in ("cp-2", "cp-3", "cp-1", "cp-3"):
        room.move(name)
        clients.append(begun(room))
        time.sleep(0.3)  # what is watched
    homes = ("cp-1", "cp-2", "cp-3", "cp-1", "cp-3")
    worst = 0.0
    for home, client in zip(homes, clients, strict=True):
        seen, longest = ended(client)
        assert {by for kind, by in seen if kind == "kept"} == {home}, seen
        assert {by for kind, by in seen if kind == "new"} <= set(NAMES), seen
        worst = max(worst, *longest.values())
    sys.stdout.write(f"\n  longest wait of five clients in four moves: {worst:.2f} s\n")
    # A SYN is sent again after one second and after three, so that nobody needed a third.
    assert worst < 3
    for host in room.cluster.hosts:
        handover.end(host)
        shown = f"nft list tables; ip rule; ip -6 rule; ip route show table {paths.HANDOVER_TABLE}"
        left = host.query("sh", "-c", shown)
        assert paths.PREFIX not in left.text
        assert str(paths.HANDOVER_TABLE) not in left.text


def test_without_it_they_are_cut_off(room: Room) -> None:
    """That the test can fail."""
    client = begun(room)
    room.address("del", "cp-1")
    room.settle("cp-2")
    time.sleep(2)  # what is watched, on a busy machine
    seen, _ = ended(client)
    assert any(by.startswith("ConnectionResetError") for kind, by in seen if kind == "kept"), seen


def test_a_server_that_had_the_vip_does_not_answer_who_asks_where_it_is(room: Room) -> None:
    """Its table of routes has the address as a local one; a neighbour that forgets must learn the right place."""
    room.move("cp-2")
    client = room.hosts["client"]
    for _ in range(5):
        client.run("ip", "neighbour", "flush", "dev", "eth0")
        probe = begun(room)
        seen, _ = ended(probe)
        assert {by for _, by in seen} <= {"cp-2"}, seen


def test_the_clients_of_an_old_holder_are_counted(room: Room) -> None:
    client = begun(room)
    room.move("cp-2")

    def left() -> int:
        return len(handover.clients(room.host("cp-1"), room.vip))

    # The one that is kept, once the last of those that are new each time has ended.
    wait_until("one connection to be left", lambda: left() == 1, seconds=30)
    time.sleep(1)  # what is watched
    assert left() == 1
    ended(client)
    wait_until("none", lambda: not left(), seconds=30)
