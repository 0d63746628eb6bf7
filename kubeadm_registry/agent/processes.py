"""The processes of a systemd unit: found, watched for CPU time, and killed but never mistaken for another.

/proc/PID/cgroup names the unit under both versions of cgroups, and under Podman, whose processes are in groups below
the unit's.
"""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Callable, Optional

TICKS = os.sysconf("SC_CLK_TCK")


def _read(path: str) -> bytes:
    """What a small file of the kernel holds; nothing if it cannot be read."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(handle, 4096)
    except OSError:
        return b""
    finally:
        os.close(handle)


class Processes:
    """The processes of *unit*, or the single process *pid* if no unit is given."""

    def __init__(self, unit: str = "", *, pid: int = 0, proc: str = "/proc") -> None:
        self.unit = unit
        self._proc = proc
        self._found: dict[int, int] = {}  # pid: start time, which tells a process from a later one with its number
        if pid:
            self.follow(pid)

    def follow(self, pid: int) -> None:
        """Watch the single process *pid* from now on."""
        if pid not in self._found:
            stat = self._stat(pid)
            self._found = {pid: stat[1]} if stat else {}

    def find(self) -> tuple[int, ...]:
        """Look for the unit's processes; returns their numbers."""
        if self.unit:
            found = {}
            for entry in os.scandir(self._proc):
                if not entry.name.isdigit() or not self._belongs(entry.name):
                    continue
                stat = self._stat(int(entry.name))
                if stat is not None:
                    found[int(entry.name)] = stat[1]
            self._found = found
        return tuple(self._found)

    def _belongs(self, pid: str) -> bool:
        text = _read(f"{self._proc}/{pid}/cgroup")
        unit = self.unit.encode()
        return unit in text and any(unit in line.split(b":", 2)[-1].split(b"/") for line in text.splitlines())

    def _stat(self, pid: int) -> Optional[tuple[float, int]]:
        """CPU seconds and start time; None if there is no such process, or only its zombie."""
        text = _read(f"{self._proc}/{pid}/stat")
        if not text:
            return None
        rest = text[text.rindex(b")") + 2 :].split()
        if rest[0] in (b"Z", b"X"):
            return None
        return (int(rest[11]) + int(rest[12])) / TICKS, int(rest[19])

    def cpu(self) -> Optional[float]:
        """CPU seconds that the processes have used; None if there are none. Finds them anew when one has gone."""
        total = self._total()
        if total is None and self.unit:
            self.find()
            total = self._total()
        return total

    def _total(self) -> Optional[float]:
        total = 0.0
        for pid, started in self._found.items():
            stat = self._stat(pid)
            if stat is None or stat[1] != started:
                return None
            total += stat[0]
        return total if self._found else None

    def waits_for_cpu(self) -> bool:
        """Whether a thread of theirs would run if the machine let it: then it is starved, not hung."""
        for pid in self._found:
            folder = f"{self._proc}/{pid}/task"
            try:
                threads = [entry.path for entry in os.scandir(folder)]
            except OSError:
                continue
            for thread in threads:
                text = _read(f"{thread}/stat")
                if text and text[text.rindex(b")") + 2 :].startswith(b"R"):
                    return True
        return False

    def kill(self) -> tuple[int, ...]:
        """SIGKILL to all of them; returns the numbers of those that were hit. Raises PermissionError."""
        hit = []
        for pid in self.find():
            try:
                handle = os.pidfd_open(pid)
            except ProcessLookupError:
                continue
            try:
                stat = self._stat(pid)
                if stat is not None and stat[1] == self._found[pid]:
                    signal.pidfd_send_signal(handle, signal.SIGKILL)
                    hit.append(pid)
            except ProcessLookupError:
                pass
            finally:
                os.close(handle)
        return tuple(hit)

    def identities(self) -> frozenset[tuple[int, int]]:
        """(pid, start time) of all processes that are there now."""
        self.find()
        return frozenset(self._found.items())

    def alive(self, identities: frozenset[tuple[int, int]]) -> bool:
        """Whether one of *identities* is still there."""
        return any((stat := self._stat(pid)) is not None and stat[1] == started for pid, started in identities)


class Exits:
    """Calls *gone* in the moment that a process ends, which no probe can be quick enough to see."""

    def __init__(self, loop: asyncio.AbstractEventLoop, processes: Processes, gone: Callable[[], None]) -> None:
        self._loop = loop
        self._processes = processes
        self._gone = gone
        self._handles: list[int] = []

    def look(self) -> None:
        """Watch the processes that are there now, unless some are watched already."""
        if self._handles:
            return
        for pid in self._processes.find():
            try:
                handle = os.pidfd_open(pid)
            except OSError:
                continue
            self._handles.append(handle)
            self._loop.add_reader(handle, self._ended)

    def _ended(self) -> None:
        self.close()
        self._gone()

    def close(self) -> None:
        """Watch nothing."""
        for handle in self._handles:
            self._loop.remove_reader(handle)
            os.close(handle)
        self._handles = []
