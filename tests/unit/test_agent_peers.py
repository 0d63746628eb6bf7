"""Asking the host of a peer that is not heard, on this machine's loopback addresses."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from kubeadm_registry.agent.clock import clock
from kubeadm_registry.agent.config import parse
from kubeadm_registry.agent.heartbeat import Outbox
from kubeadm_registry.agent.peers import Link
from tests.unit.test_agent_daemon import raw

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


def asked(link: Link) -> bool:
    """Whether its kernel answered."""
    before = clock()

    async def ask() -> None:
        await link.knock()

    asyncio.run(ask())
    return link.lives is not None and link.lives >= before


def test_a_kernel_answers_for_a_process_that_does_not_run(link: Link) -> None:
    assert asked(link)
    assert link.view.lives == link.lives


def test_a_kernel_refuses_for_a_process_that_is_gone(link: Link, listener: socket.socket) -> None:
    listener.close()
    assert asked(link)


def test_who_does_not_answer_is_not_known_to_live(link: Link, listener: socket.socket) -> None:
    waiting = []
    for _ in range(4):  # more than the kernel keeps for a process that does not accept: the next is not answered
        one = socket.socket()
        one.setblocking(False)
        one.connect_ex(listener.getsockname())
        waiting.append(one)
    assert not asked(link)
    assert link.view.lives is None
    for one in waiting:
        one.close()
