"""When pushes are closed because the data disk of this node is nearly full.

What is left then is for deletions: Garage's index grows by them before it shrinks. The alert RegistryDiskFull has the
same limits.
"""

from __future__ import annotations

FILLS = 0.15  # of the disk: the alert RegistryDiskFills warns while less is free
SHARE = 0.05
LEAST = 2 * 2**30  # bytes
#: Of all inodes, of which the storage takes one for each block: the alert RegistryDiskUnwritable fires below it.
FEW_INODES = 0.01
#: Pushes open again when a quarter more than the reserve is free, so that they do not open and close all the time.
MORE = 1.25
SECONDS = 60  # that pushes stay closed when the agent says no more


def nearly_full(free: int, size: int, was: bool) -> bool:
    """Whether pushes are closed with *free* of *size* bytes left; *was*: they are closed already."""
    reserve = of(size)
    return free < (reserve * MORE if was else reserve)


def of(size: int) -> float:
    """The bytes of a disk of *size* bytes that are for deletions."""
    return max(SHARE * size, LEAST)
