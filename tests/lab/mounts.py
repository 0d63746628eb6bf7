"""The lab's mounts, in a mount namespace of their own.

No other process of this machine has them in its own namespace then, where they would keep a disk busy after its power
cut. They end with the last process that lives there, however it ends.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.lab.cgroups import Cgroups
from tests.lab.command import LabError, mounts, run, wait_until
from tests.lab.settings import Place

FILES = Path(__file__).parent / "files"


class Mounts:
    """The mount namespace of the lab in *place*, which a process that does nothing keeps."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._cgroups = Cgroups(f"{place.name}-mounts")

    def up(self) -> None:
        """Make it. What is mounted on this machine is seen there too, and not the other way round."""
        self._cgroups.make()
        in_cgroup = (FILES / "in-cgroup", f"{self._cgroups.name}/keeper")
        keeper = (*in_cgroup, "unshare", "--mount", "--propagation=slave", "sleep", "infinity")
        # It outlives this process, and one that reads what this process prints would wait for it.
        none = subprocess.DEVNULL
        subprocess.run(["setsid", "--fork", *keeper], stdin=none, stdout=none, stderr=none, check=True)
        wait_until("the lab's mount namespace", lambda: self._keeper() is not None, seconds=20, every=0.02)
        hosts = self._place.hosts
        # Shared, for else each host's own namespace keeps the disks of those before it mounted after their death.
        self.run("mount", "--bind", hosts, hosts)
        self.run("mount", "--make-shared", hosts)

    def argv(self, *argv: str | Path) -> list[str]:
        """The command of this machine that runs *argv* in the namespace."""
        return ["nsenter", f"--mount=/proc/{self._alive()}/ns/mnt", "--", *map(str, argv)]

    def run(self, *argv: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run *argv* in the namespace."""
        return run(*self.argv(*argv), check=check)

    def path(self, path: Path) -> Path:
        """Where this machine's own processes find what is at *path* in the namespace."""
        return Path(f"/proc/{self._alive()}/root{path}")

    def points(self) -> list[str]:
        """Where something is mounted in the namespace, in the order of mounting; nowhere if it is gone."""
        keeper = self._keeper()
        return [] if keeper is None else mounts(keeper)

    def _alive(self) -> int:
        keeper = self._keeper()
        if keeper is None:
            raise LabError(f"the mounts of the lab in {self._place.directory} are gone: end it by tests.lab down")
        return keeper

    def _keeper(self) -> int | None:
        """The process that keeps it, once it is in it."""
        own = Path("/proc/self/ns/mnt").stat().st_ino
        for pid in self._cgroups.pids():
            try:
                if Path(f"/proc/{pid}/ns/mnt").stat().st_ino != own:
                    return pid
            except FileNotFoundError:
                continue
        return None
