"""All hosts, and what must hold at every event."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from functools import cache
from random import Random

from kubeadm_registry.agent.timings import Timings
from tests.simulation.agent import Roster
from tests.simulation.host import Host
from tests.simulation.network import Network
from tests.simulation.timeline import Timeline

WARM = 6.0  # seconds until one of the servers writes, after all were switched on
SAMPLE = 0.05  # seconds between two looks whether anybody writes
REACTIONS = (0.0005, 0.05, 0.1, 0.1)  # seconds: a busy agent gathers news before it decides
#: Seconds without a gap between its rounds, after which an agent is answerable for its gate: in its first round it
#: finds what it has lost, in the next one the workers of before, and a round is 0.2 s at most.
AWAKE = 0.5


@dataclass(frozen=True)
class Finding:
    """A promise that was broken."""

    promise: str
    at: float
    text: str


@dataclass
class Counts:
    """What happened. Times are seconds."""

    openings: int = 0
    silent_gates: float = 0.0  # longest time with two open gates, at least one of them of an agent that was not run
    overlap: float = 0.0  # longest time with two zots that could change the store, where that is allowed
    without_writer: float = 0.0  # longest time without one


class World:
    """The hosts *names*; *roster* is what each knows of the others. Those that it does not name are not there yet.

    *single_writer*: a frontend that one node may write to, as zot; else what acts under the lease is an executor.
    """

    def __init__(self, seed: int, names: tuple[str, ...], roster: Roster, *, single_writer: bool = True) -> None:
        self.single_writer = single_writer
        self.random = Random(seed)
        self.timeline = Timeline()
        self.network = Network(self.timeline, self.random)
        self.timings = Timings()
        self.timer_seconds, self.ticket_seconds = 2.0, 0.2
        self.tracing = False
        self.trace: list[str] = []
        self.finding: Finding | None = None
        self.overlaps_are_allowed = False
        self.could_write: set[str] = set()  # hosts with a zot that may write, or an executor
        self.stalls: dict[tuple[str, str], float] = {}  # (host, point): seconds, negative if it hits the whole host
        self.counts = Counts()
        self.highest = 0  # term of all writers so far
        self._two_since: float | None = None
        self._gates_since: float | None = None
        self._wrote = 0.0
        self.alone_since: float | None = None  # since when exactly one writes
        self.hosts: dict[str, Host] = {}
        for index, name in enumerate(names):
            self.hosts[name] = Host(self, name, 254 - index, roster)
        for host in self.hosts.values():
            host.used = host.name in roster.names
            if host.used:
                host.boot()
        self.timeline.watch = self.check
        self.timeline.after(SAMPLE, self.sample)

    def say(self, name: str, text: str) -> None:
        """A line of the trace."""
        if self.tracing:
            self.trace.append(f"{self.timeline.now:9.4f}  {name:<2} {text}")

    # ---- promises --------------------------------------------------------------------------------------------------

    def opened(self, host: Host, term: int) -> None:
        """A host has become the writer."""
        self.counts.openings += 1
        if term <= self.highest:
            self.broken("terms grow", f"{host.name} writes under term {term}, after {self.highest}")
        self.highest = max(self.highest, term)

    def check(self) -> None:
        """After each event. Only zots that may write can break a promise, and mostly there is at most one."""
        if not self.single_writer:
            self._executors()
        if len(self.could_write) < 2:
            if self._two_since is not None or self._gates_since is not None:
                self._two(False)
                self._gates(False)
            return
        hosts = [self.hosts[name] for name in sorted(self.could_write)]
        able = [host.name for host in hosts if host.can_change_store()]
        if len(able) > 1 and not self.overlaps_are_allowed:
            self.broken("one store", f"{' and '.join(able)} can change the store")
        self._two(len(able) > 1)
        gates = [host for host in hosts if host.gate_open()]
        awake = [host.name for host in gates if host.agent.awake(AWAKE)]
        if len(awake) > 1 and not self.overlaps_are_allowed:
            self.broken("one gate", f"the gates of {' and '.join(awake)} are open, and their agents run")
        self._gates(len(gates) > 1)

    def _executors(self) -> None:
        """None can change the store once a later term has begun, whoever's it is."""
        for name in self.could_write:
            host, process = self.hosts[name], self.hosts[name].executor.process
            if process is None or process.term >= self.highest or self.overlaps_are_allowed:
                continue
            if host.can_change_store():
                self.broken("old term", f"{name} can change the store under {process.term}, after {self.highest}")

    def _two(self, true: bool) -> None:
        now = self.timeline.now
        if true:
            self._two_since = now if self._two_since is None else self._two_since
        elif self._two_since is not None:
            self.counts.overlap = max(self.counts.overlap, now - self._two_since)
            self._two_since = None

    def _gates(self, true: bool) -> None:
        now = self.timeline.now
        if true:
            self._gates_since = now if self._gates_since is None else self._gates_since
        elif self._gates_since is not None:
            self.counts.silent_gates = max(self.counts.silent_gates, now - self._gates_since)
            self._gates_since = None

    def broken(self, promise: str, text: str) -> None:
        """A promise is broken: the first one ends the schedule."""
        if self.finding is None:
            self.say("!!", f"BROKEN {promise}: {text}")
            self.finding = Finding(promise, self.timeline.now, text)
        self.timeline.done = True

    # ---- who writes ------------------------------------------------------------------------------------------------

    def writers(self) -> list[Host]:
        """Those through whose gate a write gets to the store now."""
        found = [self.hosts[name] for name in sorted(self.could_write)]
        return [host for host in found if host.open_to_writes() and host.can_change_store()]

    def writing(self) -> Host | None:
        """The one that writes, if there is one."""
        found = self.writers()
        return found[0] if found else None

    def sample(self) -> None:
        """Look who writes."""
        now, count = self.timeline.now, len(self.writers())
        if count:
            self.counts.without_writer = max(self.counts.without_writer, now - self._wrote)
            self._wrote = now
        if count != 1:
            self.alone_since = None
        elif self.alone_since is None:
            self.alone_since = now
        self.timeline.after(SAMPLE, self.sample)

    # ---- beginning and end of a schedule ---------------------------------------------------------------------------

    def begin(self, seed: int, *, ticks: tuple[float, ...], rates: tuple[float, ...], anarchy: bool) -> None:
        """From here on everything follows from *seed*."""
        self.random.seed(f"world {seed}")
        self.counts = Counts()
        self._wrote = self.timeline.now
        for host, tick, rate in zip(self.hosts.values(), ticks, rates, strict=True):
            host.agent_tick = tick
            host.reaction = self.random.choice(REACTIONS)
            host.set_rate(rate)
            if anarchy:
                host.keepalived.power_off()
                host.keepalived.wanted = False

    def heal(self, roster: Roster | None) -> None:
        """All that is wrong ends: who is off boots, who stands still goes on, all have the same members."""
        self.say("", "HEAL")
        self.network.heal()
        self.stalls.clear()
        for host in self.hosts.values():
            if roster is not None and host.name not in roster.former and host.roster != roster:
                host.change_members(roster)
            if host.used:
                host.heal()
        self.alone_since = None


@cache
def _warm(names: tuple[str, ...], roster: Roster, warm: float, single_writer: bool) -> bytes:
    world = World(1, names, roster, single_writer=single_writer)
    world.timeline.run(warm)
    return pickle.dumps(world)


def new_world(names: tuple[str, ...], roster: Roster, *, cold: bool, single_writer: bool = True) -> World:
    """A world in which one server writes, or a *cold* one, just switched on."""
    world: World = pickle.loads(_warm(names, roster, 0.01 if cold else WARM, single_writer))  # noqa: S301  our own
    return world
