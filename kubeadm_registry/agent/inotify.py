"""Whether root can watch a directory: without that keepalived starts, and stays in FAULT for ever.

A file of its own on a node, which runs before each start of keepalived: ``python3 -I -B FILE DIRECTORY``. Its exit
status is 0 if one more inotify instance is left and *DIRECTORY* can be watched; else it says which limit is used up.

Source: inotify_init1(2) and inotify_add_watch(2), "ERRORS"; inotify(7), "/proc interfaces".
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from pathlib import Path

LIMITS = Path("/proc/sys/fs/inotify")
IN_CLOSE_WRITE = 0x8
#: What is used up by the error, and what would be enough for a node of Kubernetes.
_USED_UP = {errno.EMFILE: ("max_user_instances", 8192), errno.ENOSPC: ("max_user_watches", 524288)}


def problem(directory: str) -> str:
    """Why *directory* cannot be watched; empty: it can be."""
    try:
        import ctypes  # noqa: PLC0415  a small Python of a distribution may lack it
    except ImportError:
        return ""
    library = ctypes.CDLL(None, use_errno=True)
    handle = library.inotify_init1(os.O_CLOEXEC)
    if handle >= 0:
        watched = library.inotify_add_watch(handle, os.fsencode(directory), IN_CLOSE_WRITE) >= 0
        error = 0 if watched else ctypes.get_errno()
        os.close(handle)
    else:
        error = ctypes.get_errno()
    if not error:
        return ""
    name, enough = _USED_UP.get(error, ("", 0))
    if not name:
        return f"cannot watch {directory}, as keepalived must: {os.strerror(error)}"
    return (
        f"keepalived needs inotify, and root has used up fs.inotify.{name}, {_limit(name)}: run "
        f"`sysctl -w fs.inotify.{name}={enough}`, and put that into a file in /etc/sysctl.d"
    )


def _limit(name: str) -> str:
    try:
        return (LIMITS / name).read_text(encoding="ascii").strip()
    except OSError:
        return "unknown"


def main(arguments: Sequence[str]) -> int:
    """``DIRECTORY``; the exit status."""
    found = problem(*arguments)
    if found:
        sys.stderr.write(f"{found}\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
