"""HAProxy, two of them on each host: the gate in front of zot, which a restart or reload shuts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.simulation.process import Process

if TYPE_CHECKING:
    from tests.simulation.host import Host
    from tests.simulation.zot import ZotProcess


class HaproxyProcess(Process):
    """One worker: its gate, and the life of zot that it has connections to."""

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self.gate = False
        self.epoch = 0


class Haproxy:
    """One instance: the worker that takes commands, and workers of before a reload that nobody can tell anything."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.worker: HaproxyProcess | None = None
        self.old: list[tuple[HaproxyProcess, ZotProcess | None]] = []

    @property
    def alive(self) -> bool:
        return self.worker is not None and self.worker.alive

    def start(self) -> None:
        """From its files: the gate is shut."""
        if self.host.on and not self.alive:
            self.worker = HaproxyProcess(self.host)

    def set(self, gate: bool, epoch: int) -> None:
        """What comes by the runtime socket; it is done a moment later, by whoever listens then."""
        if self.alive:
            self.host.timeline.after(self.host.random.uniform(0.0005, 0.005), self._arrive, gate, epoch)

    def _arrive(self, gate: bool, epoch: int) -> None:
        if self.worker is not None:
            self.worker.do(self._set, self.worker, gate, epoch)

    def _set(self, worker: HaproxyProcess, gate: bool, epoch: int) -> None:
        if worker.gate is not gate:
            self.host.say(f"gate {'open' if gate else 'shut'}")
        worker.gate, worker.epoch = gate, epoch

    def reload(self) -> None:
        """The new worker knows nothing; the old one ends what it has in hand, seconds later."""
        if self.worker is None or not self.worker.alive:
            return
        if self.worker.gate:
            self.old.append((self.worker, self.host.zot.process))
            self.host.timeline.after(self.host.random.uniform(0.1, 10.0), self._forget, self.worker)
        self.worker = HaproxyProcess(self.host)

    def _forget(self, worker: HaproxyProcess) -> None:
        self.old = [entry for entry in self.old if entry[0] is not worker]

    def crash(self) -> None:
        """Killed; systemd starts it again."""
        if self.worker is not None:
            self.worker.kill()
        self.old = []
        self.host.systemd.later(self.host.random.uniform(0.21, 0.5), self.start)

    def power_off(self) -> None:
        if self.worker is not None:
            self.worker.kill()
        self.worker, self.old = None, []

    def passes(self) -> bool:
        """Whether a write can get to the zot process that is there now."""
        if self.worker is not None and self.worker.alive and self.worker.gate:
            return True
        return any(zot is self.host.zot.process for _, zot in self.old)

    def clear(self) -> bool:
        """Whether no worker's gate is open, so that this need not be looked at."""
        return not self.old and not (self.worker is not None and self.worker.alive and self.worker.gate)
