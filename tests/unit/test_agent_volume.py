"""The file system of the data directory, as the agent sees it."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import NoReturn

import pytest

from kubeadm_registry.agent import volume


def test_what_it_is_looked_at_with_is_gone_afterwards(tmp_path: Path) -> None:
    seen = os.statvfs(tmp_path)
    told = volume.look(tmp_path)
    assert (told["size"], told["inodes"], told["writable"]) == (seen.f_blocks * seen.f_frsize, seen.f_files, True)
    assert not list(tmp_path.iterdir())


def test_what_an_agent_that_was_killed_left_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / volume.PROBE).touch()
    assert volume.writable(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    (tmp_path / volume.PROBE).symlink_to(victim)
    assert not volume.writable(tmp_path)
    assert not victim.exists()


@pytest.mark.parametrize(
    ("code", "writable"),
    [(errno.EROFS, False), (errno.EIO, False), (errno.EACCES, False), (errno.ENOSPC, True), (errno.EDQUOT, True)],
)
def test_it_cannot_be_written_but_for_want_of_room(
    code: int, writable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> NoReturn:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(volume.os, "open", refuse)
    assert volume.writable(tmp_path) is writable


@pytest.mark.parametrize(
    ("options", "state", "refuses"),
    [
        ("rw,relatime", None, False),
        ("rw,relatime", {}, False),
        ("rw,relatime", {"data": None}, False),
        ("rw,relatime", {"data": {"free": 1, "size": 2}}, False),
        ("rw,relatime", {"data": {"writable": True}}, False),
        ("rw,relatime", {"data": {"writable": False}}, True),
        ("rw,relatime,abort,emergency_ro", None, True),
        ("ro,relatime", {"data": {"writable": True}}, True),
        ("rw,errors=remount-ro", None, False),
    ],
)
def test_mount_and_agent_say_it_both(options: str, state: dict[str, object] | None, refuses: bool) -> None:
    """An agent of an earlier release does not say it."""
    assert volume.refuses(options, state) is refuses
