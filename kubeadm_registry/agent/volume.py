"""The file system of the data directory: how full it is, and whether it can be written."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional

from kubeadm_registry.agent.document import Data

#: The file that is created and removed to see whether one can be.
PROBE = ".writable"
#: Room is told by its own figures.
NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})
#: The options of a mount that refuses writes; the second is told from Linux 6.15 on.
REFUSING = frozenset({"ro", "emergency_ro"})


def look(folder: Path) -> Data:
    """What is so of the file system of *folder*. A disk that hangs answers nothing, so not in the event loop.

    Raises OSError when it says nothing of itself.
    """
    seen = os.statvfs(folder)
    return {
        "free": seen.f_bavail * seen.f_frsize,
        "size": seen.f_blocks * seen.f_frsize,
        "free_inodes": seen.f_favail,
        "inodes": seen.f_files,
        "writable": writable(folder),
    }


def writable(folder: Path) -> bool:
    """Whether a file can be created in *folder*, or could, if there was room.

    Tried, since nothing tells it: from Linux 6.12 on ext4 refuses writes after an error of its disk and is not mounted
    read-only then (commit d3476f3dad4a); other file systems answer EIO.
    """
    probe = folder / PROBE
    try:
        os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
        probe.unlink()
    except OSError as error:
        return error.errno in NO_ROOM
    return True


def refuses(options: str, state: Optional[Mapping[str, Any]]) -> bool:
    """Whether it takes no writes: by the *options* of its mount, or by the document of the agent there."""
    told = (state or {}).get("data") or {}
    return bool(REFUSING & set(options.split(","))) or told.get("writable") is False
