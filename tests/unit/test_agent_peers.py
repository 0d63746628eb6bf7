"""Asking the host of a peer that is not heard, on this machine's loopback addresses."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Awaitable, Iterator
from pathlib import Path

import pytest

from kubeadm_registry.agent.clock import clock
from kubeadm_registry.agent.config import parse
from kubeadm_registry.agent.heartbeat import Outbox
from kubeadm_registry.agent.model import Report
from kubeadm_registry.agent.peers import Link, Links
from tests.unit.test_agent_daemon import free_port, raw

PEER = "127.8.0.2"


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """Where the peer's HAProxy would listen; nobody accepts."""
    with socket.create_server((PEER, 0), backlog=1) as one:
        yield one


@pytest.fixture
def link(listener: socket.socket, tmp_path: Path) -> Link:
    config = parse(raw(tmp_path, 0, {"internal": listener.getsockname()[1]}, 5001))
    return Link(config, config.peers[0], Outbox("instance"), b"k" * 32)


def asked(link: Link) -> tuple[bool, bool]:
    """Whether it is known that its kernel answered, and that it did not."""
    before = clock()
    asyncio.run(link.knock())
    lives, deaf = link.view.lives, link.view.deaf
    return lives is not None and lives >= before, deaf is not None and deaf >= before


def full(listener: socket.socket) -> list[socket.socket]:
    """More connections than the kernel keeps for a process that does not accept: the next one is not answered."""
    waiting = []
    for _ in range(4):
        one = socket.socket()
        one.setblocking(False)
        one.connect_ex(listener.getsockname())
        waiting.append(one)
    return waiting


def test_a_kernel_answers_for_a_process_that_does_not_run(link: Link, listener: socket.socket) -> None:
    assert asked(link) == (True, False)
    _, (address, _) = listener.accept()
    assert address == link._config.address, "not the virtual IP"


def test_a_kernel_refuses_for_a_process_that_is_gone(link: Link, listener: socket.socket) -> None:
    listener.close()
    assert asked(link) == (True, False)


def test_who_does_not_answer_in_time_is_deaf(link: Link, listener: socket.socket) -> None:
    waiting = full(listener)
    assert asked(link) == (False, True)
    for one in waiting:
        one.close()


def test_an_answer_that_waited_for_this_agent_is_an_answer(link: Link, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the loop was late, Python 3.12 and later end the wait though the connection is there."""

    async def late(work: Awaitable[None], _: float) -> None:
        await work
        raise TimeoutError

    monkeypatch.setattr(asyncio, "wait_for", late)
    assert asked(link) == (True, False)


def test_what_fails_on_this_host_says_nothing_of_the_other(link: Link, monkeypatch: pytest.MonkeyPatch) -> None:
    object.__setattr__(link._config, "address", "192.0.2.1")  # not here
    assert asked(link) == (False, False)

    def none_left(*_: object) -> socket.socket:
        raise OSError(errno.EMFILE, "too many open files")

    async def ask() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(socket, "socket", none_left)
            await link.knock()

    asyncio.run(ask())
    assert (link.lives, link.deaf) == (None, None)


@pytest.mark.parametrize(("silent", "knocks"), [(0.1, 0), (0.25, 1), (11.0, 1)])
def test_the_links_ask_about_a_peer_that_is_overdue_and_not_too_often(
    tmp_path: Path, listener: socket.socket, silent: float, knocks: int
) -> None:
    config = parse(raw(tmp_path, 0, {"internal": listener.getsockname()[1]}, 5001))
    peer = next(one for one in config.peers if one.address == PEER)

    async def tick() -> float | None:
        links = Links(config, b"k" * 32, lambda: None)
        link = links.links[peer.name]
        now = clock()
        link.inbox.believed = now - silent
        for later in (0.0, 0.02, 0.05):
            links.tick(now + later)
        if link.asking is not None:
            await link.asking
        links.close()
        return link.lives

    lives = asyncio.run(tick())
    assert (lives is not None) is bool(knocks)
    listener.settimeout(0.2)
    for _ in range(knocks):
        listener.accept()
    with pytest.raises(TimeoutError):
        listener.accept()


def test_nobody_else_on_the_host_gets_what_peers_send(tmp_path: Path) -> None:
    """Of two connected sockets with the same ends, which other users could open with SO_REUSEADDR, one gets it all."""
    port = free_port(socket.SOCK_DGRAM)
    config = parse(raw(tmp_path, 0, {"heartbeat": port}, 5001))
    links = [Link(config, peer, Outbox("instance"), b"k" * 32) for peer in config.peers]
    try:
        for link in links:
            link.open()
        for link in links:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as thief:
                thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                with pytest.raises(OSError, match="in use"):
                    thief.bind((config.address, port))
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                sender.bind((link.peer.address, port))
                sender.sendto(link.peer.name.encode(), (config.address, port))
        for link in links:
            assert link.socket is not None
            assert link.socket.recv(100) == link.peer.name.encode()
    finally:
        for link in links:
            link.close()


@pytest.mark.parametrize("known", [b"k" * 32, b"o" * 32, b"p" * 32], ids=["the key", "the last one", "an older one"])
def test_a_node_that_has_left_is_told_so_and_nothing_of_it_is_believed(tmp_path: Path, known: bytes) -> None:
    """It was switched off when it left, and knows of the three as they were; the key may have been replaced since."""
    port = free_port(socket.SOCK_DGRAM)
    before = parse(raw(tmp_path, 1, {"heartbeat": port}, 5001))
    document = raw(tmp_path, 0, {"heartbeat": port}, 5001)
    left = next(peer for peer in document["peers"] if peer["name"] == before.name)
    document["peers"].remove(left)
    after = parse({**document, "generation": 2, "former": [left]})

    async def talk() -> tuple[Report | None, dict[str, Link]]:
        member = Links(after, b"n" * 32, lambda: None, left=[b"p" * 32])
        member.use(b"k" * 32, (), [b"o" * 32, b"p" * 32])
        old = Links(before, known, lambda: None)
        member.say(Report(members=after.members))
        link = old.links[after.name]
        deadline = clock() + 10
        try:
            while link.view.said is None and clock() < deadline:
                member.tick(clock())
                old.tick(clock())
                await asyncio.sleep(0.02)
            return link.view.said, member.links
        finally:
            member.close()
            old.close()

    said, believed = asyncio.run(talk())
    assert said is not None
    assert (said.removed, said.members.generation) == (True, 2)
    assert left["name"] not in believed


def test_no_member_is_believed_by_a_key_that_only_nodes_which_have_left_may_have(tmp_path: Path) -> None:
    port = free_port(socket.SOCK_DGRAM)
    one, two = (parse(raw(tmp_path, number, {"heartbeat": port}, 5001)) for number in (0, 1))
    former = parse({**raw(tmp_path, 0, {"heartbeat": port}, 5001), "former": [{"name": "x", "address": "127.8.0.9"}]})

    async def talk(key: bytes) -> tuple[Link, Link]:
        mine, other = Links(former, b"k" * 32, lambda: None, left=[b"o" * 32]), Links(two, key, lambda: None)
        try:
            for _ in range(10):
                mine.tick(clock())
                other.send()
                await asyncio.sleep(0.02)
            return mine.links[two.name], other.links[one.name]
        finally:
            mine.close()
            other.close()

    here, there = asyncio.run(talk(b"o" * 32))
    assert (here.view.said, here.view.heard, there.view.said) == (None, None, None)
    assert here.refusal == there.refusal == "made with another key"
    assert all(link.view.said is not None for link in asyncio.run(talk(b"k" * 32)))
