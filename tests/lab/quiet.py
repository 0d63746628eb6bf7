"""A plugin of pytest: tests of files that need a quiet machine wait for what other processes test beside them."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tests.lab.command import wait_until

_BESIDE, _FILES = "KUBEADM_REGISTRY_LAB_BESIDE", "KUBEADM_REGISTRY_LAB_QUIET"
_LONGEST = 3600.0  # seconds


def environment(beside: Path, files: Sequence[Path]) -> Mapping[str, str]:
    """What lets the tests of *files* wait until nobody holds a lock (flock) of the file *beside*."""
    return {_BESIDE: str(beside), _FILES: os.pathsep.join(map(str, files))}


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Wait before the first fixture."""
    if str(item.path) in os.environ.get(_FILES, "").split(os.pathsep):
        with Path(os.environ[_BESIDE]).open() as beside:
            wait_until("the other lanes to end", lambda: _unlocked(beside.fileno()), seconds=_LONGEST, every=0.5)


def _unlocked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
