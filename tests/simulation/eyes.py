"""What the agent's probes see of the simulated host."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kubeadm_registry.agent.model import Answers, Reading

if TYPE_CHECKING:
    from tests.simulation.host import Host

PROBE = 0.1  # seconds between two questions: a round that comes later has missed some


class Eyes:
    """The newest answers, as they were when the agent last looked."""

    def __init__(self, host: Host, now: float) -> None:
        self.host = host
        self.first = self.looked = now
        self.frontend = self.door = Answers(first=now)
        self.reading = Reading(first=now)
        self.storage = Answers(first=now)
        self.proxies = tuple(Answers(first=now) for _ in host.haproxies)

    def look(self) -> None:
        """Ask everything once; all that lives answers at once."""
        host, now = self.host, self.host.seconds()
        count = max(1, round((now - self.looked) / PROBE))
        self.looked = now
        self.storage = well = Answers(first=self.first, answered=now, good=now, streak=self.storage.streak + count)
        self.look_at_frontend(now, count)
        workers = [one.worker for one in host.haproxies]
        if all(one is not None and one.running for one in workers):
            self.proxies = (well,) * len(workers)
            self.door = well
            return
        refused = Answers(first=self.first, refused=True)
        self.proxies = tuple(
            refused if one is None or not one.alive else well if one.running else hung(old, now)
            for one, old in zip(workers, self.proxies, strict=True)
        )
        if any(one is well for one in self.proxies):
            self.door = well
        elif all(one is refused for one in self.proxies):
            self.door = refused

    def look_at_frontend(self, now: float, count: int) -> None:
        """The frontend answers when it serves; the known object needs the storage behind it as well."""
        process = self.host.zot.process
        if process is None or not process.alive or not process.serves:
            self.frontend = Answers(first=self.first, answered=self.frontend.answered, refused=True)
            return
        if not process.running:
            self.frontend = hung(self.frontend, now)
            return
        self.frontend = Answers(first=self.first, answered=now, good=now, streak=self.frontend.streak + count)
        if not self.host.world.single_writer or self.host.timer.passes(self.host.ticks()):
            self.reading = Reading(first=self.first, good=now, streak=self.reading.streak + count)


def hung(before: Answers, now: float) -> Answers:
    """What is known of a process that stands still: it uses no CPU."""
    return Answers(before.first, before.answered, before.good, 0, idle=before.idle if before.idle is not None else now)
