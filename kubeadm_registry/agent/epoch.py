"""The highest term that a node has let write, kept across the lives of its agent.

Of two majorities one server at least is in both, and that server makes the terms of successive writers grow. An agent
that forgot the term at its restart would let a candidate of before write with a lower one.
"""

from __future__ import annotations

from pathlib import Path

from kubeadm_registry.agent.model import LeaseMemory


def known(memory: LeaseMemory) -> int:
    """What must not be forgotten of *memory*, its vote of this moment among it."""
    return max(memory.epoch, memory.vote.term if memory.vote is not None else 0)


class Epoch:
    """The number in the file *path*, on tmpfs: who restarts the whole server has left every vote behind."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.value = 0
        """What is known to be in the file."""

    def read(self) -> int:
        """What an earlier life left there; 0 if there is nothing."""
        try:
            self.value = int(self._path.read_text(encoding="ascii"))
        except (OSError, ValueError):
            self.value = 0
        return self.value

    def keep(self, value: int) -> None:
        """Have at least *value* in the file. Raises OSError."""
        if value > self.value:
            new = self._path.with_name(self._path.name + ".new")
            new.write_text(f"{value}\n", encoding="ascii")
            new.rename(self._path)
            self.value = value
