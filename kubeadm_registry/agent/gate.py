"""Ends a frontend process that could write, and gives it its writing or its standby configuration.

The frontend watches its file by inode: a rename is never noticed, a truncation logs a failed reload of nothing. So
the file is written over in place by one write, padded with blanks to the length it has (JSON does not mind).
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from kubeadm_registry.agent.clock import clock
from kubeadm_registry.agent.config import Frontend
from kubeadm_registry.agent.processes import Processes

POLL = 0.005  # seconds


def put(path: Path, content: bytes) -> bool:
    """Make the file *path* hold *content*, in place; whether it had to be changed. Raises OSError."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    try:
        length = os.fstat(handle).st_size
        text = content.rstrip()
        text += b" " * (max(length, len(content)) - len(text) - 1) + b"\n"
        if os.pread(handle, length, 0) == text:
            return False
        if os.pwrite(handle, text, 0) != len(text):
            raise OSError(f"{path}: only a part was written")
        return True
    finally:
        os.close(handle)


class Gate:
    """The frontend of a node when only one node may write.

    The file *mark* is there while a frontend process may have had its writing configuration, also across a crash of
    the agent.
    """

    def __init__(self, frontend: Frontend, processes: Processes, mark: Path) -> None:
        self._frontend = frontend
        self._processes = processes
        self._mark = mark

    def writing(self) -> bool:
        """Give the running frontend its writing configuration; whether that changed anything. Raises OSError."""
        self._mark.touch()
        return put(Path(self._frontend.runtime_config), Path(self._frontend.writer_config).read_bytes())

    async def fence(self, deadline: float) -> bool:
        """End the frontend process that could write; whether it is known to be gone. Raises OSError.

        Nothing is ended when no process can have had the writing configuration. The next process starts with the
        standby configuration. No write of a killed process reached the store later (measured).
        """
        changed = put(Path(self._frontend.runtime_config), Path(self._frontend.standby_config).read_bytes())
        if not changed and not self._mark.exists():
            return True
        before = self._processes.identities()
        self._processes.kill()
        end = clock() + deadline
        while self._processes.alive(before):
            if clock() >= end:
                return False
            await asyncio.sleep(POLL)
        self._mark.unlink(missing_ok=True)
        return True
