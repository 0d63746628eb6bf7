"""Whose connections an agent ends that gets the VIP, and when; how a kernel does it, the lab's test_ending shows."""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from socket import AF_INET, SO_MARK, SOCK_DGRAM, SOL_SOCKET, socket
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubeadm_registry import paths
from kubeadm_registry.agent import clients, endings, inheritance, netlink
from kubeadm_registry.agent.clients import Client
from kubeadm_registry.agent.config import parse
from kubeadm_registry.agent.endings import ACK, FIN, RST, SYN, Seen, seen, segment
from kubeadm_registry.agent.inheritance import SETTLES, Inheritance
from kubeadm_registry.components import handover
from tests.unit.test_agent_daemon import raw

VIP = "192.0.2.1"
OLD, OTHER, OWN = ("10.0.0.4", 40001), ("10.0.0.5", 40002), ("10.0.0.6", 40003)

addresses = st.one_of(
    st.tuples(st.ip_addresses(v=4), st.ip_addresses(v=4)), st.tuples(st.ip_addresses(v=6), st.ip_addresses(v=6))
)
ports, numbers = st.integers(0, 65535), st.integers(0, 2**32 - 1)


@given(addresses, ports, ports, numbers, numbers, st.sampled_from((SYN | ACK, FIN | ACK, RST | ACK)))
def test_a_segment_has_a_right_checksum_and_says_what_was_put_in(
    ends: tuple[Any, Any], near: int, far: int, sequence: int, acknowledged: int, flags: int
) -> None:
    """RFC 9293, section 3.1: the sum over the pseudo header and the segment has all ones."""
    packet = segment((str(ends[0]), near), (str(ends[1]), far), sequence, acknowledged, flags)
    pseudo = b"".join(ip_address(str(one)).packed for one in ends) + struct.pack("!II", len(packet), 6)
    total = sum(struct.unpack(f"!{len(pseudo + packet) // 2}H", pseudo + packet))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    assert total == 0xFFFF
    said = seen(packet, with_header=False)
    assert said == Seen(near, flags, (sequence + bool(flags & FIN)) & 0xFFFFFFFF, acknowledged)


def test_what_a_client_sends_next_comes_behind_its_data_and_its_end() -> None:
    packet = segment(OLD, (VIP, 5000), 2**32 - 3, 77, FIN | ACK) + b"12345"
    assert seen(packet, with_header=False) == Seen(40001, FIN | ACK, 3, 77)
    header = b"\x46" + bytes(23)  # an IPv4 header with an option
    assert seen(header + packet, with_header=True) == seen(packet, with_header=False)


@given(st.binary(max_size=60), st.booleans())
def test_no_packet_is_too_odd(packet: bytes, with_header: bool) -> None:
    assert isinstance(seen(packet, with_header=with_header), (Seen, type(None)))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root marks packets")
@pytest.mark.parametrize(
    ("mark", "taken"),
    [(endings.MARK, True), (endings.MARK | 0x10000, True), (0, False), (0x10000, False), (endings.MARK - 1, False)],
)
def test_the_filter_takes_what_has_the_mark_whatever_a_firewall_has_put_above_it(mark: int, taken: bool) -> None:
    text = ctypes.create_string_buffer(endings.FILTER, len(endings.FILTER))
    with socket(AF_INET, SOCK_DGRAM) as here, socket(AF_INET, SOCK_DGRAM) as there:
        here.bind(("127.0.0.1", 0))
        here.setblocking(False)
        program = struct.pack("HL", len(endings.FILTER) // 8, ctypes.addressof(text))
        here.setsockopt(SOL_SOCKET, endings.SO_ATTACH_FILTER, program)
        there.setsockopt(SOL_SOCKET, SO_MARK, mark)
        there.sendto(b"x", here.getsockname())
        with contextlib.nullcontext() if taken else pytest.raises(BlockingIOError):
            assert here.recv(9) == b"x"


@dataclass
class Site:
    """An agent's inheritance, whose peers have told of *there*, and a kernel with the connections *here*."""

    there: dict[str, set[Client]] = field(default_factory=lambda: {VIP: {OLD, OTHER, OWN}})
    here: list[Client] = field(default_factory=lambda: [OWN])
    rules: int = 5
    passing: int = 0
    told: list[Any] = field(default_factory=list)
    begun: list[tuple[str, set[Client]]] = field(default_factory=list)
    closed: int = 0
    said: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    broken: bool = False
    silent: bool = False

    def connected(self, _: float) -> dict[str, set[Client]]:
        return self.there

    def tell(self, there: Any) -> None:
        self.told.append(there)


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Site:
    one = Site()

    class Connections:
        def find(self, source: Any) -> list[Any]:
            assert (source.address, source.port) == (VIP, 5000)
            if one.silent:
                raise FileNotFoundError("no such module")
            return [type("Found", (), {"other": other}) for other in one.here]

        def close(self) -> None: ...

    class Ruleset:
        def rules(self, table: str, family: int = netlink.INET) -> int:
            if table == handover.PASS:
                return one.passing if family == netlink.IPV6 else 0
            assert (table, family) == (paths.ENDING_TABLE, netlink.INET)
            return one.rules

        def close(self) -> None: ...

    class Ending:
        def __init__(self, vip: str, port: int, there: Collection[Client], done: Callable[[int, int], None]) -> None:
            if one.broken:
                raise PermissionError("not allowed")
            assert port == 5000
            one.begun.append((vip, set(there)))
            done(len(there), len(there))

        def close(self) -> None:
            one.closed += 1

    for made in (Connections, Ruleset, Ending):
        monkeypatch.setattr(inheritance, made.__name__, made)
    return one


@pytest.fixture
def agent(site: Site, tmp_path: Path) -> Inheritance:
    config = parse(raw(tmp_path, 0, {}, 5001))
    return Inheritance(
        config,
        site,  # type: ignore[arg-type]
        lambda _, text: site.said.append(text),
        lambda _, text: site.failed.append(text),
    )


def test_who_gets_the_vip_ends_what_others_had_and_not_its_own(agent: Inheritance, site: Site) -> None:
    agent.tick(0.0, held=False)
    agent.tick(1.0, held=True)
    site.there = {}  # what was known when it came is what counts
    agent.tick(1.0 + SETTLES / 2, held=True)
    assert site.begun == []
    agent.tick(1.0 + SETTLES, held=True)
    assert site.begun == [(VIP, {OLD, OTHER})]
    agent.tick(2.0, held=True)
    assert len(site.begun) == 1
    assert site.said == ["ended 2 of 2 connections of clients that the last holder of the VIP had"]


def test_an_agent_that_starts_takes_nothing_over(agent: Inheritance, site: Site) -> None:
    for now in (0.0, 1.0, 2.0):
        agent.tick(now, held=True)
    assert site.begun == []


def test_after_a_planned_move_connections_go_on(agent: Inheritance, site: Site) -> None:
    """The target of a move is asked for nothing: that it passes packets on is what shows it."""
    site.passing = 4
    agent.tick(0.0, held=False)
    for now in (1.0, 2.0, 3.0):
        agent.tick(now, held=True)
    assert (site.begun, site.said, site.failed) == ([], [], [])


def test_a_vip_that_was_here_for_a_moment_only_changes_nothing(agent: Inheritance, site: Site) -> None:
    agent.tick(0.0, held=False)
    agent.tick(1.0, held=True)
    agent.tick(1.05, held=False)
    agent.tick(2.0, held=False)
    assert site.begun == []


def test_what_goes_on_ends_with_the_vip(agent: Inheritance, site: Site) -> None:
    agent.tick(0.0, held=False)
    agent.tick(1.0, held=True)
    agent.tick(2.0, held=True)
    assert (len(site.begun), site.closed) == (1, 0)
    agent.tick(3.0, held=False)
    assert site.closed == 1


def test_without_the_rules_clients_are_left_alone(agent: Inheritance, site: Site) -> None:
    site.rules = 0
    agent.tick(0.0, held=False)
    agent.tick(1.0, held=True)
    agent.tick(2.0, held=True)
    assert site.begun == []
    assert "no nft rules in kubeadm-registry-ending" in site.failed[0]


def test_nobody_to_end_asks_the_kernel_for_nothing(agent: Inheritance, site: Site) -> None:
    site.there, site.rules = {VIP: {OWN}, "192.0.2.9": {OLD}}, 0
    agent.tick(0.0, held=False)
    agent.tick(1.0, held=True)
    agent.tick(2.0, held=True)
    assert (site.begun, site.failed) == ([], [])


def test_what_the_kernel_refuses_is_told_and_ends_nothing_else(agent: Inheritance, site: Site) -> None:
    site.broken = True
    agent.tick(0.0, held=False)
    agent.tick(1.0, held=True)
    agent.tick(2.0, held=True)
    assert "not allowed" in site.failed[0]
    agent.tick(3.0, held=True)
    assert len(site.failed) == 1


def test_the_holder_tells_its_clients_now_and_then(agent: Inheritance, site: Site) -> None:
    agent.tick(0.0, held=False)
    assert site.told == []
    for now in (1.0, 1.1, 1.0 + clients.EVERY, 1.3, 1.0 + 2 * clients.EVERY):
        agent.tick(now, held=True)
    assert site.told == [{VIP: [OWN]}] * 3


def test_a_kernel_that_does_not_know_who_is_connected_is_asked_no_oftener(agent: Inheritance, site: Site) -> None:
    site.silent = True
    for now in (1.0, 1.05, 1.1, 1.15, 1.0 + clients.EVERY):
        agent.tick(now, held=True)
    assert len(site.failed) == 2


def test_the_agent_has_the_names_and_the_mark_of_the_rules() -> None:
    assert endings.MARK == paths.ENDING_MARK
    assert (inheritance.TABLE, inheritance.PASSES) == (paths.ENDING_TABLE, handover.PASS)
