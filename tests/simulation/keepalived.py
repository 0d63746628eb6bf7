"""VRRP as keepalived does it here: no preemption, adverts by unicast, files that say fit, alone and behind."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.simulation.process import Process

if TYPE_CHECKING:
    from tests.simulation.host import Host

ADVERT = 0.15  # seconds
DOWN = 3  # adverts that are missed
WEAKER = 100  # what ``alone`` takes from the priority
WEAK = 10  # what ``behind`` takes


class KeepalivedProcess(Process):
    """One life: the state of the instance."""

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self.state = "fault"
        self.deadline = 0.0
        self.fit = False
        self.checks = False  # a check of the deadline is planned
        self.turn = 0  # as master: adverts of an earlier turn have ended


class Keepalived:
    """The unit. The address itself lies in the kernel and outlives the process until the unit starts anew."""

    def __init__(self, host: Host, priority: int) -> None:
        self.host = host
        self.base = priority
        self.process: KeepalivedProcess | None = None
        self.wanted = True  # False: others move the address

    @property
    def priority(self) -> int:
        return self.base - (WEAKER if self.host.files_alone else 0) - (WEAK if self.host.files_behind else 0)

    def start(self) -> None:
        """The unit first takes away an address that an earlier life left behind."""
        if not self.wanted or not self.host.on or (self.process is not None and self.process.alive):
            return
        self.host.address(False)
        self.process = KeepalivedProcess(self.host)
        self._look(self.process)

    def files_changed(self) -> None:
        """The agent wrote one of the files."""
        if self.process is not None:
            self.process.do(self._look, self.process)

    def _look(self, process: KeepalivedProcess) -> None:
        fit = self.host.files_fit
        if fit and process.state == "fault":
            self._become(process, "backup")
        elif not fit and process.state != "fault":
            was = process.state
            self._become(process, "fault")
            if was == "master":
                self._advert(0)

    def _become(self, process: KeepalivedProcess, state: str) -> None:
        process.state = state
        self.host.address(state == "master")
        if state == "backup":
            self._wait(process, DOWN * ADVERT + self._skew())
        elif state == "master":
            process.turn += 1
            self._beat(process, process.turn)

    def _skew(self) -> float:
        return (256 - self.priority) * ADVERT / 256

    def _wait(self, process: KeepalivedProcess, seconds: float) -> None:
        process.deadline = self.host.timeline.now + seconds
        if not process.checks:
            process.checks = True
            process.later(seconds, self._check, process)

    def _check(self, process: KeepalivedProcess) -> None:
        process.checks = False
        if process.state != "backup":
            return
        left = process.deadline - self.host.timeline.now
        if left <= 1e-6:
            self._become(process, "master")
        else:
            process.checks = True
            process.later(left, self._check, process)

    def _beat(self, process: KeepalivedProcess, turn: int) -> None:
        if process.state == "master" and process.turn == turn:
            self._advert(self.priority)
            process.later(ADVERT, self._beat, process, turn)

    def _advert(self, priority: int) -> None:
        for peer in self.host.peers():
            self.host.world.network.send(self.host.name, peer.name, peer.advert, self.host.name, priority)

    def heard(self, source: str, priority: int) -> None:
        """An advert arrives at this host."""
        if self.process is not None:
            self.process.do(self._heard, self.process, source, priority)

    def _heard(self, process: KeepalivedProcess, source: str, priority: int) -> None:
        if process.state == "backup":
            self._wait(process, self._skew() if priority == 0 else DOWN * ADVERT + self._skew())
        elif process.state == "master" and priority:
            if (priority, source) > (self.priority, self.host.name):
                self._become(process, "backup")
            else:
                self._advert(self.priority)

    def crash(self) -> None:
        """Killed: the address stays until the unit starts again, a second later."""
        if self.process is not None:
            self.process.kill()
        self.host.systemd.later(1.0, self.start)

    def power_off(self) -> None:
        if self.process is not None:
            self.process.kill()
        self.process = None
