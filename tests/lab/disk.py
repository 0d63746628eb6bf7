"""A host's own disk: a file system in an image, which can lose power."""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path

from tests.lab.command import run, wait_until
from tests.lab.mounts import Mounts

#: Shuts a file system down without a flush, which is what file system tests call a power failure (linux/fs.h, ext4.h).
FS_IOC_SHUTDOWN = 0x8004587D
NO_LOG_FLUSH = 2


class Disk:
    """The ext4 file system in *image*, to be mounted at *mountpoint* among *mounts*."""

    def __init__(self, image: Path, mountpoint: Path, mounts: Mounts) -> None:
        self.image = image
        self.mountpoint = mountpoint
        self._all = mounts

    def make(self, size: str) -> None:
        """Make it anew, empty, of *size* as ``truncate`` takes it; it takes the room of what is written."""
        self.image.unlink(missing_ok=True)
        run("truncate", "-s", size, self.image)
        run("mkfs.ext4", "-q", "-m", "0", "-E", "nodiscard", self.image)

    def mount(self) -> None:
        """Mount it, which replays its journal."""
        self.mountpoint.mkdir(exist_ok=True)
        if not self._mounts():
            self._all.run("mount", "-o", "loop", self.image, self.mountpoint)

    def crash(self) -> None:
        """Lose what was not synced: from now on nothing reaches the image, and the next mount recovers the journal."""
        if not self._mounts():
            return
        descriptor = os.open(self._all.path(self.mountpoint), os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, FS_IOC_SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))
        finally:
            os.close(descriptor)

    def unmount(self) -> None:
        """Unmount it with all that is mounted on it, and wait until nothing holds it.

        A mount that lived on anywhere would show the crashed file system to the next boot.
        """
        for path in self._mounts():
            if self._all.run("umount", path, check=False).returncode != 0:
                self._all.run("umount", "--lazy", path, check=False)
        wait_until(f"release of {self.image}", self._released, seconds=20)

    def _mounts(self) -> list[str]:
        """Where this disk or something on it is mounted, the innermost first."""
        own = str(self.mountpoint)
        return [path for path in reversed(self._all.points()) if path == own or path.startswith(f"{own}/")]

    def _released(self) -> bool:
        return not self.image.exists() or not run("losetup", "--associated", self.image).stdout
