"""A host's own control groups, by which all its processes are frozen, counted and killed as one.

Without a cgroup of its own in every hierarchy, hosts would share ``/kubepods`` and each other's systemd units.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

from tests.lab.command import wait_until

ROOT = Path("/sys/fs/cgroup")


def unified() -> bool:
    """Whether this machine has cgroup v2 alone."""
    return (ROOT / "cgroup.controllers").exists()


def hierarchies() -> list[Path]:
    """The root of each hierarchy: one in version 2, one for each controller in version 1."""
    if unified():
        return [ROOT]
    return sorted(path for path in ROOT.iterdir() if not path.is_symlink() and (path / "cgroup.procs").exists())


class Cgroups:
    """The control groups of one host, or of the lab's mounts, ``NAME`` in each hierarchy.

    ``NAME/host`` is what the host sees as its root, ``NAME/keeper`` holds the process that starts it again after a
    reboot: version 2 allows processes in leaves only.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    @property
    def directories(self) -> list[Path]:
        return [root / self.name for root in hierarchies() if (root / self.name).is_dir()]

    @property
    def _freezer(self) -> Path:
        return (ROOT if unified() else ROOT / "freezer") / self.name

    def make(self) -> None:
        """Make them, ready to take processes."""
        if unified():
            controllers = " ".join(f"+{name}" for name in (ROOT / "cgroup.controllers").read_text().split())
            for directory in (ROOT, ROOT / self.name):
                directory.mkdir(exist_ok=True)
                (directory / "cgroup.subtree_control").write_text(controllers)
            return
        for root in hierarchies():
            directory = root / self.name
            directory.mkdir(exist_ok=True)
            if root.name == "cpuset":  # takes no process before it knows its processors and memory
                for file in ("cpuset.cpus", "cpuset.mems"):
                    (directory / file).write_text((root / file).read_text())
                (directory / "cgroup.clone_children").write_text("1")

    def pids(self) -> list[int]:
        """All processes, those of containers on the host among them."""
        return _processes(self._freezer)

    def leader(self) -> int | None:
        """The host's PID 1 as this machine numbers it; None if the host is off."""
        depth = len(_namespace_pids(os.getpid())) + 1
        for pid in self.pids():
            numbers = _namespace_pids(pid)
            if len(numbers) == depth and numbers[-1] == 1:
                return pid
        return None

    @property
    def frozen(self) -> bool:
        """Whether the processes stand still."""
        if unified():
            return "frozen 1" in _text(self._freezer / "cgroup.events")
        return _text(self._freezer / "freezer.state") == "FROZEN"

    def freeze(self) -> None:
        """Let all processes stand still, at once."""
        self._set_frozen(True)
        wait_until(f"standstill of {self.name}", lambda: self.frozen, seconds=10, every=0.02)

    def thaw(self) -> None:
        """Let the processes go on."""
        self._set_frozen(False)

    @property
    def _memory(self) -> Path:
        return (ROOT if unified() else ROOT / "memory") / self.name

    def memory_used(self) -> int:
        """Bytes of memory that processes have and that cannot be dropped, as a file's contents can."""
        anonymous = "anon" if unified() else "total_rss"
        values = dict(line.split() for line in (self._memory / "memory.stat").read_text().splitlines())
        return int(values[anonymous])

    def limit_memory(self, size: int | None) -> None:
        """Let all processes together have *size* bytes of memory; None: all that this machine has."""
        file, unlimited = ("memory.max", "max") if unified() else ("memory.limit_in_bytes", "-1")
        (self._memory / file).write_text(unlimited if size is None else str(size))

    def kill(self) -> None:
        """End all processes, frozen ones too, and wait until they are gone."""
        wait_until(f"end of the processes of {self.name}", self._kill, seconds=20, every=0.05)

    def _kill(self) -> bool:
        """Whether none is left; one that is just coming in is in some hierarchies only."""
        found = {pid for directory in self.directories for pid in _processes(directory)}
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.thaw()
        return not found

    def remove(self) -> None:
        """End what has come in meanwhile, and remove them."""
        wait_until(f"removal of the control groups of {self.name}", self._remove, seconds=20, every=0.05)

    def _remove(self) -> bool:
        self._kill()
        for directory in self.directories:
            for path in [*_deepest_first(directory), directory]:
                with contextlib.suppress(OSError):  # gone already, or busy for another moment
                    path.rmdir()
        return not self.directories

    def _set_frozen(self, wanted: bool) -> None:
        if not self._freezer.is_dir():
            return
        if unified():
            (self._freezer / "cgroup.freeze").write_text("1" if wanted else "0")
        else:
            (self._freezer / "freezer.state").write_text("FROZEN" if wanted else "THAWED")


def of_lab(name: str) -> list[Cgroups]:
    """Those of all hosts of the lab *name* and of its mounts, also those that a killed run left behind."""
    ours = re.compile(rf"{re.escape(name)}-(h[1-9][0-9]*|mounts)")
    found = {path.name for root in hierarchies() for path in root.iterdir() if ours.fullmatch(path.name)}
    return [Cgroups(each) for each in sorted(found)]


def _processes(directory: Path) -> list[int]:
    """Those in a control group and all below it."""
    found: list[int] = []
    for path, _, _ in os.walk(directory):  # passes over a directory that went away meanwhile, as rglob does not
        with contextlib.suppress(OSError):  # a cgroup that did so has no processes
            found += [int(line) for line in (Path(path) / "cgroup.procs").read_text().split()]
    return found


def _deepest_first(directory: Path) -> Iterator[Path]:
    for path, names, _ in os.walk(directory, topdown=False):
        for name in names:
            yield Path(path) / name


def _namespace_pids(pid: int) -> list[int]:
    """The numbers of a process in its own and all outer PID namespaces, the outermost that we see first."""
    for line in _text(Path(f"/proc/{pid}/status")).splitlines():
        if line.startswith("NSpid:"):
            return [int(number) for number in line.split()[1:]]
    return []


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
