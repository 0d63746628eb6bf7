"""The file of the hard state: written in place and synced. What a killed process wrote is still there, after a power
cut it may not be."""

from __future__ import annotations

from random import Random

from kubeadm_registry.agent.model import HardState


class Disk:
    """One file. *cached* is what is read, *durable* what surely outlives a power cut."""

    def __init__(self, random: Random) -> None:
        self.cached = self.durable = HardState()
        self.delay = (0.001, 0.02)  # seconds, a sync takes between the two
        self._random = random
        self._unsynced: list[HardState] = []

    def write(self, state: HardState) -> None:
        """Put it into the page cache: the disk may get it at any time, or never."""
        self.cached = state
        self._unsynced.append(state)

    def sync(self) -> None:
        """All that was written has reached the disk."""
        self.durable = self.cached
        self._unsynced = []

    def sync_seconds(self) -> float:
        """How long the next sync takes."""
        return self._random.uniform(*self.delay)

    def lose_power(self) -> None:
        """What was synced is there; of what was not, perhaps the newest, perhaps an older one, perhaps nothing."""
        self.cached = self.durable = self._random.choice([self.durable, *self._unsynced])
        self._unsynced = []
