"""Lists of who is connected with the VIP: what they carry, and which of them count."""

from __future__ import annotations

import asyncio
import hmac
import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubeadm_registry.agent.clients import MAGIC, RECENT, Client, Known, Told, decode, encode, packed, split, unpacked
from kubeadm_registry.agent.clock import clock
from kubeadm_registry.agent.config import parse
from kubeadm_registry.agent.heartbeat import DIGEST, LARGEST, Refused
from kubeadm_registry.agent.model import Report
from kubeadm_registry.agent.peers import Links
from tests.unit.test_agent_daemon import eventually, free_port, raw

KEY = b"k" * 32
VIP = "10.0.0.100"
ONE: Client = ("10.0.0.4", 40123)
TOLD = Told("cp-1", "cp-2", "0123456789abcdef", 7, VIP, packed([ONE, ("10.0.0.5", 50001)]))


def changed(datagram: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    """The datagram as another release would make it."""
    said = json.loads(datagram[len(MAGIC) + DIGEST :])
    change(said)
    body = json.dumps(said).encode()
    return MAGIC + hmac.digest(KEY, MAGIC + body, "sha256") + body


@pytest.fixture(scope="module")
def frozen(root: Path) -> bytes:
    """A list as 0.2 sends it, under KEY."""
    return (root / "tests/golden/formats/clients").read_bytes()


def test_a_list_of_0_2_is_understood_and_made_so_still(frozen: bytes) -> None:
    assert decode([KEY], frozen) == TOLD
    assert encode(KEY, TOLD) == frozen


def test_one_key_more_is_passed_over_and_one_less_is_refused(frozen: bytes) -> None:
    assert decode([KEY], changed(frozen, lambda said: said.update(later=[1]))) == TOLD
    for key in json.loads(frozen[len(MAGIC) + DIGEST :]):
        with pytest.raises(Refused):
            decode([KEY], changed(frozen, lambda said, key=key: said.pop(key)))  # type: ignore[misc]


def test_it_is_believed_under_either_key_and_under_no_other() -> None:
    assert decode([b"o" * 32, KEY], encode(KEY, TOLD)) == TOLD
    with pytest.raises(Refused, match="another key"):
        decode([b"o" * 32], encode(KEY, TOLD))


def test_a_heartbeat_is_no_list_and_a_list_no_heartbeat() -> None:
    """Whoever moves the digest from the one to the other has made neither."""
    datagram = encode(KEY, TOLD)
    body = datagram[len(MAGIC) + DIGEST :]
    with pytest.raises(Refused):
        decode([KEY], MAGIC + hmac.digest(KEY, body, "sha256") + body)


@pytest.mark.parametrize("clients", ["no base64!", "AAAA", 5, None, "A" * 3])
def test_what_is_no_list_is_refused(clients: object) -> None:
    with pytest.raises(Refused, match="not to be understood"):
        decode([KEY], changed(encode(KEY, TOLD), lambda said: said.update(clients=clients)))


@given(st.binary(max_size=200))
def test_nothing_but_a_list_is_understood(data: bytes) -> None:
    for datagram in (data, MAGIC + data):
        with pytest.raises(Refused):
            decode([KEY], datagram)


@given(st.booleans(), st.integers(0, 600), st.integers(1, 63))
def test_a_long_list_goes_in_datagrams_that_fit(six: bool, count: int, length: int) -> None:
    base, vip = ("fd00::1:{}", "fd00::100") if six else ("10.0.{}.9", VIP)
    clients = [(base.format(number % 250), 10000 + number) for number in range(count)]
    names = "n" * length, "m" * length
    back: set[Client] = set()
    for some in split(vip, clients):
        datagram = encode(KEY, Told(*names, "0123456789abcdef", 10**9, vip, some))
        assert len(datagram) <= LARGEST
        back |= set(unpacked(vip, decode([KEY], datagram).packed))
    assert back == set(clients)


def told(counter: int, *ports: int, instance: str = "a") -> Told:
    return Told("cp-1", "cp-2", instance, counter, VIP, packed(("10.0.0.4", port) for port in ports))


def test_the_last_two_lists_count_for_a_while() -> None:
    known = Known("cp-2", "cp-1")
    known.take(told(1, 1), "a", 10.0)
    known.take(told(2, 2), "a", 10.2)
    known.take(told(2, 3), "a", 10.2)  # the same list goes on
    known.take(told(3, 4), "a", 10.4)
    assert {port for _, port in known.recent(11.0)[VIP]} == {2, 3, 4}
    assert known.recent(10.4 + RECENT + 0.1) == {}
    known.take(told(9), "a", 12.0)
    known.take(told(10), "a", 12.2)
    assert known.recent(12.3) == {VIP: frozenset()}


def test_what_is_played_back_does_not_count() -> None:
    known = Known("cp-2", "cp-1")
    known.take(told(5, 1), "a", 10.0)
    for old, instance in ((told(4, 2), "a"), (told(6, 2, instance="earlier"), "a"), (told(6, 2), "")):
        with pytest.raises(Refused):
            known.take(old, instance, 10.1)
    for wrong in (Known("cp-3", "cp-1"), Known("cp-2", "cp-3")):
        with pytest.raises(Refused, match="from cp-1 for cp-2"):
            wrong.take(told(6, 2), "a", 10.1)
    assert known.recent(10.2)[VIP] == {("10.0.0.4", 1)}


def test_another_life_of_an_agent_begins_anew() -> None:
    known = Known("cp-2", "cp-1")
    known.take(told(5, 1), "a", 10.0)
    known.take(told(1, 2, instance="b"), "b", 10.1)
    assert known.recent(10.2)[VIP] == {("10.0.0.4", 2)}


def test_agents_tell_each_other(tmp_path: Path) -> None:
    """By real sockets; what is told before a heartbeat was believed is refused, and told again."""
    ports = {"heartbeat": free_port(socket.SOCK_DGRAM)}
    configs = [parse(raw(tmp_path, number, ports, 5001)) for number in range(2)]

    async def course() -> None:
        first, second = (Links(config, KEY, lambda: None) for config in configs)

        def heard() -> bool:
            for links in (first, second):
                links.say(Report())
                links.send()
            first.tell({VIP: [ONE]})
            return second.connected(clock()) == {VIP: {ONE}}

        try:
            await eventually(heard)
            assert first.connected(clock()) == {}
        finally:
            first.close()
            second.close()

    asyncio.run(course())
