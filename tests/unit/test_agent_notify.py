"""sd_notify, against real datagram sockets."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from kubeadm_registry.agent.notify import notify


@pytest.fixture(params=["path", "abstract"])
def systemd(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    name = str(tmp_path / "notify") if request.param == "path" else f"@{secrets.token_hex(8)}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as one:
        one.bind(f"\0{name[1:]}" if name.startswith("@") else name)
        one.settimeout(2)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        yield one


def test_systemd_gets_the_text_as_one_datagram(systemd: socket.socket) -> None:
    assert notify("READY=1\nWATCHDOG=1")
    assert systemd.recv(4096) == b"READY=1\nWATCHDOG=1"


def test_what_a_busy_systemd_did_not_take_must_be_said_again(systemd: socket.socket) -> None:
    """A READY=1 that was lost would leave the unit starting until it is ended for that."""
    said = 0
    while notify("WATCHDOG=1"):
        said += 1
        assert said < 10000, "its queue has no end"
    for _ in range(said):
        systemd.recv(4096)
    assert notify("READY=1")
    assert systemd.recv(4096) == b"READY=1"


def test_nothing_happens_without_systemd(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    assert not notify("READY=1")
