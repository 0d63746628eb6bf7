"""Whether memory is short on this host, by the time that its processes lose to it (PSI).

Where memory is short a process waits for pages, of its own code or of a file, or for the kernel to free some. From
outside that looks like a hang, but a new process would have to wait for more.

Source: Documentation/accounting/psi.rst of Linux. Without PSI (a kernel before 4.20, or psi=0) nothing is ever short.
"""

from __future__ import annotations

import os
from typing import Optional

PATH = "/proc/pressure/memory"
SHORT = 0.2
"""Part of the time in which somebody waits for memory: a host that is well stays under a hundredth."""
LEAST = 0.05
"""Seconds between two looks that are compared."""


class Pressure:
    """Compares what the kernel has counted at two looks."""

    def __init__(self, path: str = PATH) -> None:
        self._path = path
        self._at = 0.0
        self._total: Optional[float] = None
        self._short = False

    def short(self, now: float) -> bool:
        """Whether memory was short since the last look; False at the first one."""
        apart = now - self._at
        if self._total is not None and apart < LEAST:
            return self._short
        before, total = self._total, self._lost()
        self._short = before is not None and total is not None and total - before >= SHORT * apart
        self._at, self._total = now, total
        return self._short

    def _lost(self) -> Optional[float]:
        """Seconds in which somebody has waited for memory since the host started; None if the kernel does not count."""
        try:
            handle = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            some = os.read(handle, 512).split(b"\n")[0]
            return int(some.rpartition(b"total=")[2]) / 1_000_000
        except (OSError, ValueError):
            return None
        finally:
            os.close(handle)
