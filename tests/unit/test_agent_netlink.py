"""Ending TCP connections and knowing addresses, against this machine's kernel."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys

import pytest

from kubeadm_registry.agent.netlink import Addresses, Connection, Connections, End, program

ROOT = os.geteuid() == 0


def test_a_filter_lets_pass_what_runs_to_its_end_exactly() -> None:
    text = program(End("127.0.0.9"), End(port=5001))
    code, yes, no = struct.unpack_from("=BBH", text)
    assert (code, yes) == (7, 16)
    assert no == len(text) + 4, "what fails jumps behind the end"
    code, second, no = struct.unpack_from("=BBH", text, yes)
    assert code == 8
    assert yes + second == len(text)
    assert no == second + 4
    assert struct.unpack_from("=BBxxi", text, 4) == (socket.AF_INET, 32, -1)
    assert struct.unpack_from("=BBxxi", text, yes + 4) == (0, 0, 5001)
    assert program(End(), End()) == b""
    assert struct.unpack_from("=BBxxi", program(End("fd00::1", 7), End()), 4) == (socket.AF_INET6, 128, 7)


@pytest.mark.parametrize(("timer", "retransmits", "stuck"), [(1, 1, True), (1, 0, False), (2, 3, False), (0, 0, False)])
def test_stuck_is_what_had_to_be_sent_again(timer: int, retransmits: int, stuck: bool) -> None:
    assert Connection(socket.AF_INET, 1, timer, retransmits, b"").stuck is stuck


def pair(family: int, address: str, source: str) -> tuple[socket.socket, socket.socket, socket.socket]:
    """A connection on loopback: (listener, client, server)."""
    listener = socket.create_server((address, 0), family=family)
    client = socket.socket(family)
    client.bind((source, 0))
    client.connect(listener.getsockname())
    server, _ = listener.accept()
    return listener, client, server


def test_connections_are_found_by_their_ends_and_a_listener_is_none_of_them() -> None:
    listener, client, server = pair(socket.AF_INET, "127.0.0.1", "127.0.0.9")
    with listener, client, server:
        port = listener.getsockname()[1]
        connections = Connections()
        found = list(connections.find(End("127.0.0.9"), End("127.0.0.1", port)))
        assert [one.ports for one in found] == [(client.getsockname()[1], port)]
        assert not found[0].stuck
        both = list(connections.find(End(port=port), End())) + list(connections.find(End(), End(port=port)))
        assert len(both) == 2, "the two ends of the connection, not the listening socket"
        assert not list(connections.find(End("127.0.0.8"), End("127.0.0.1", port)))
        connections.close()


def test_an_ipv6_socket_that_carries_ipv4_is_found_by_its_ipv4_address() -> None:
    try:
        listener = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    except (OSError, ValueError):
        pytest.skip("this machine has no IPv6")
    port = listener.getsockname()[1]
    with listener, socket.create_connection(("127.0.0.1", port)) as client:
        server, _ = listener.accept()
        with server:
            connections = Connections()
            found = list(connections.find(End("127.0.0.1", port), End("127.0.0.1", client.getsockname()[1])))
            assert [one.family for one in found] == [socket.AF_INET6]
            connections.close()


IN_NAMESPACE = """
import errno, socket, subprocess, sys
from kubeadm_registry.agent.netlink import Connections, End
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)

def pair(family, address, source, port):
    listener = socket.create_server((address, port), family=family)
    client = socket.socket(family)
    client.bind((source, 0))
    client.connect((address, port))
    return listener, client, listener.accept()[0]

def code(sock):
    sock.settimeout(2)
    try:
        return "end" if not sock.recv(1) else "data"
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))

c = Connections()
for family, address, source in ((socket.AF_INET, "127.0.0.1", "127.0.0.9"), (socket.AF_INET6, "::1", "::1")):
    listener, read, read_server = pair(family, address, source, 5001)
    other_listener, other, other_server = pair(family, address, source, 5002)
    plain = socket.socket(family)
    if family == socket.AF_INET:
        plain.connect((address, 5001))
        write_server = listener.accept()[0]
    assert c.end_all(End(source), End(address, 5001), stuck=True) == 0
    assert c.end_all(End(source), End(address, 5001), ports=frozenset({9})) == 0
    assert c.end_all(End(source), End(address, 5001)) == 1
    assert code(read) == "ECONNABORTED", code(read)
    assert code(read_server) in ("ECONNRESET", "end")
    other_server.send(b"x")
    assert code(other) == "data", "another port was not touched"
    if family == socket.AF_INET:
        write_server.send(b"x")
        assert code(plain) == "data", "a write, from another address, was not touched"
    again = socket.create_connection((address, 5001))
    assert listener.accept(), "the listener lives"
    assert c.end_all(End(), End(address, 7777)) == 0
print("done")
"""


@pytest.mark.skipif(not ROOT and "CI" not in os.environ, reason="needs root: makes a network namespace")
def test_reads_are_ended_and_writes_and_listeners_are_not() -> None:
    result = subprocess.run(
        ["unshare", "--net", sys.executable, "-c", IN_NAMESPACE],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.stdout.strip() == "done", result.stderr


STUCK = """
import socket, subprocess, time
from kubeadm_registry.agent.netlink import Connections, End
for line in ("link add v0 type veth peer name v1", "link set lo up", "link set v0 up", "link set v1 up",
             "address add 10.99.0.1/24 dev v0",
             "neighbour add 10.99.0.2 lladdr 02:00:00:00:00:02 dev v0 nud permanent"):
    subprocess.run(["ip", *line.split()], check=True)
half = socket.socket()
half.setblocking(False)
c = Connections()
begun = time.monotonic()
half.connect_ex(("10.99.0.2", 3901))  # nobody answers
while not c.end_all(End(), End("10.99.0.2"), ports=frozenset({3901}), stuck=True):
    assert time.monotonic() < begun + 30, "never stuck"
    time.sleep(0.1)
assert time.monotonic() > begun + 0.9, "it has only just begun: the kernel sends again after a second"
print("done")
"""


@pytest.mark.skipif(not ROOT and "CI" not in os.environ, reason="needs root: makes a network namespace")
def test_a_connection_that_nobody_answers_gets_stuck_and_is_ended() -> None:
    result = subprocess.run(
        ["unshare", "--net", sys.executable, "-c", STUCK], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.stdout.strip() == "done", result.stderr


def test_this_host_has_its_own_addresses_and_no_others() -> None:
    addresses = Addresses()
    assert addresses.here("127.0.0.1")
    assert not addresses.here("192.0.2.1")
    assert not addresses.here("2001:db8::1")
    addresses.close()


NEWS = """
import select, subprocess, time
from kubeadm_registry.agent.netlink import Addresses
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
a = Addresses()
for address, family in (("10.98.0.10/32", "-4"), ("fd98::10/128", "-6")):
    plain = address.split("/")[0]
    assert not a.here(plain)
    a.drain()
    subprocess.run(["ip", family, "address", "add", address, "dev", "lo"], check=True)
    assert select.select([a.news], [], [], 2)[0], "no news of an address that came"
    a.drain()
    until = time.monotonic() + 5  # the kernel tells of an IPv6 address before it has the route to it
    while not a.here(plain):
        assert time.monotonic() < until, plain
    subprocess.run(["ip", family, "address", "del", address, "dev", "lo"], check=True)
    assert select.select([a.news], [], [], 2)[0], "no news of an address that went"
    a.drain()
    until = time.monotonic() + 5
    while a.here(plain):
        assert time.monotonic() < until, plain
print("done")
"""


@pytest.mark.skipif(not ROOT and "CI" not in os.environ, reason="needs root: makes a network namespace")
def test_an_address_that_comes_or_goes_is_news() -> None:
    result = subprocess.run(
        ["unshare", "--net", sys.executable, "-c", NEWS], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.stdout.strip() == "done", result.stderr
