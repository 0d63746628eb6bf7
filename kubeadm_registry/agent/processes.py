"""The processes of a systemd unit: found, watched for CPU time, and killed but never mistaken for another.

/proc/PID/cgroup names the unit under both versions of cgroups, and under Podman, whose processes are in groups below
the unit's.
"""

from __future__ import annotations

import errno
import os
import signal
from typing import TYPE_CHECKING, Callable, Optional

if TYPE_CHECKING:
    import asyncio  # not for the recorder of pulls, nor for the command line

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
    """The processes of *unit*; without one the process *pid* and its children.

    Of a template, named as systemd does it (``name@.service``), those of all its instances.
    """

    def __init__(self, unit: str = "", *, pid: int = 0, proc: str = "/proc") -> None:
        self.unit = unit
        name, self._template, kind = unit.partition("@.")
        self._name = (f"{name}@" if self._template else unit).encode()
        self._kind = f".{kind}".encode()
        self._proc = proc
        self._found: dict[int, int] = {}  # pid: start time, which tells a process from a later one with its number
        self._parent: Optional[tuple[int, int]] = None
        if pid:
            self.follow(pid)

    def follow(self, pid: int) -> None:
        """Watch *pid* and its children from now on: of HAProxy the parent listens, and the children do the work."""
        stat = self._stat(pid)
        self._parent = (pid, stat[1]) if stat else None
        self.find()

    def find(self) -> tuple[int, ...]:
        """Look for the processes; returns their numbers."""
        found = {}
        for pid in self._candidates():
            stat = self._stat(pid)
            if stat is not None:
                found[pid] = stat[1]
        self._found = found
        return tuple(found)

    def _candidates(self) -> list[int]:
        if self.unit:
            return [int(one.name) for one in os.scandir(self._proc) if one.name.isdigit() and self._belongs(one.name)]
        if self._parent is None:
            return []
        pid, started = self._parent
        stat = self._stat(pid)
        if stat is None or stat[1] != started:
            return []
        return [pid, *map(int, _read(f"{self._proc}/{pid}/task/{pid}/children").split())]

    def _belongs(self, pid: str) -> bool:
        text = _read(f"{self._proc}/{pid}/cgroup")
        if self._name not in text:
            return False
        groups = (group for line in text.splitlines() for group in line.split(b":", 2)[-1].split(b"/"))
        if not self._template:
            return any(group == self._name for group in groups)
        return any(group.startswith(self._name) and group.endswith(self._kind) for group in groups)

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
        if not self.unit:
            self.find()  # a reload makes a child that was not there before, and this is cheap
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

    def pages_read(self) -> int:
        """How often they have waited for a page of their own memory that the kernel had dropped (major faults)."""
        total = 0
        for pid in self._found:
            text = _read(f"{self._proc}/{pid}/stat")
            if text:
                total += int(text[text.rindex(b")") + 2 :].split()[9])
        return total

    def states(self) -> set[str]:
        """Of their threads, by the letters of proc(5): a thread in R would run if the machine let it."""
        found = set()
        for pid in self._found:
            folder = f"{self._proc}/{pid}/task"
            try:
                threads = [entry.path for entry in os.scandir(folder)]
            except OSError:
                continue
            for thread in threads:
                text = _read(f"{thread}/stat")
                if text:
                    found.add(chr(text[text.rindex(b")") + 2]))
        return found

    def kill(self) -> tuple[int, ...]:
        """SIGKILL to all of them; returns the numbers of those that were hit. Raises PermissionError."""
        return tuple(pid for pid in self.find() if self._kill(pid, self._found[pid]))

    def _kill(self, pid: int, started: int) -> bool:
        """End the process *pid* if it is the one that *started* then; whether it was hit."""
        try:
            handle = os.pidfd_open(pid)
        except ProcessLookupError:
            return False
        except OSError as error:
            if error.errno != errno.ENOSYS:
                raise
            handle = -1  # a kernel before 5.3: between look and signal the number might pass to another process
        try:
            stat = self._stat(pid)
            if stat is None or stat[1] != started:
                return False
            if handle < 0:
                os.kill(pid, signal.SIGKILL)
            else:
                signal.pidfd_send_signal(handle, signal.SIGKILL)
        except ProcessLookupError:
            return False
        finally:
            if handle >= 0:
                os.close(handle)
        return True

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
