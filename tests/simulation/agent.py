"""The agent's process: the product's rules, lease, steering and heartbeats, with eyes and hands in a simulated host."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

from kubeadm_registry.agent.heartbeat import Packet
from kubeadm_registry.agent.model import Members, Observation, Role, Settings
from kubeadm_registry.agent.steering import Steering, remembered
from kubeadm_registry.agent.timings import Timings
from tests.simulation.eyes import Eyes
from tests.simulation.hands import SimulatedHands
from tests.simulation.links import Links
from tests.simulation.process import Ended, Process

if TYPE_CHECKING:
    from tests.simulation.host import Host

LOOK = 0.2  # seconds between two looks at what HAProxy does
GAP = 0.3  # seconds between two rounds: after a longer one the agent was not awake
FARE = 3  # goodbyes


@dataclass(frozen=True)
class Roster:
    """What a server's configuration says about all servers."""

    names: tuple[str, ...]
    generation: int = 1
    before: tuple[str, ...] = ()
    former: tuple[str, ...] = ()


@lru_cache(maxsize=256)
def settings_of(name: str, roster: Roster, timings: Timings, single_writer: bool) -> Settings:
    """What the rules need of such a configuration."""
    return Settings(
        name,
        tuple(one for one in roster.names if one != name),
        single_writer,
        timings,
        Members(roster.generation, " ".join(roster.names)),
        roster.before,
        executor=True,
    )


class AgentProcess(Process):
    """One life of the agent. Until ``begin`` Python is still starting."""

    steering: Steering
    hands: SimulatedHands
    links: Links
    eyes: Eyes

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self.began = self.leaving = False
        self.stalls = host.world.stalls
        self.due = False
        self.looked = 0.0
        self.role = Role.CLOSING
        self.opened = -1  # the last term under which it could write
        self.last_round = self.awake_since = 0.0

    def begin(self, takes_over: bool) -> None:
        """The first round."""
        host, now = self.host, self.host.seconds()
        settings = settings_of(host.name, host.roster, host.world.timings, host.world.single_writer)
        self.links = Links(host, settings, f"{host.random.getrandbits(64):016x}")
        self.eyes = Eyes(host, now)
        self.hands = SimulatedHands(self)
        fit = takes_over and host.files_fit
        host.write_claim(fit, host.files_alone, host.files_behind)
        self.steering = Steering(settings, self.hands, self.clock, remembered(now, self.hands.kept, fit=fit))
        self.hands.steering = self.steering
        self.began = True
        self.tick()

    def settled(self) -> bool:
        """Whether the list of members has not changed but for the one before, which it is to forget: it goes on."""
        if not self.began or self.leaving:
            return False
        now = settings_of(self.host.name, self.host.roster, self.host.world.timings, self.host.world.single_writer)
        if now.before or replace(self.steering.settings, before=()) != now:
            return False
        self.steering.settings = now
        return True

    def tick(self) -> None:
        """One round: decide, ask and send what is due."""
        if self.leaving or not self.step():
            return
        true, now = self.host.timeline.now, self.host.seconds()
        if true - self.last_round > GAP:
            self.awake_since = true
        self.last_round = true
        self.links.tick(now)
        self.eyes.look()
        if now - self.looked >= LOOK:
            self.looked = now
            self.hands.correct()
        self.host.agent.notify()
        self.later(self.host.agent_tick * (0.9 + 0.2 * self.host.random.random()), self.tick)

    def step(self) -> bool:
        """Decide, and do it; False if the process was killed meanwhile."""
        self.due = False
        try:
            self.steering.step(self.observe)
        except Ended:
            return False
        memory = self.steering.memory.lease
        if memory.role is not self.role:
            self.host.say(f"{self.role.value} -> {memory.role.value}, term {memory.term}")
            self.role = memory.role
            if not self.host.world.single_writer:
                self.host.executor.tell(memory.term if self.role is Role.WRITER else None)
        # One that stood still within the round that made it the writer may be late: its timer has ended then, and
        # nothing is written before the next round, which gives up.
        if self.role is Role.WRITER and memory.term != self.opened and self.host.timer.passes(self.host.ticks()):
            self.opened = memory.term
            self.host.world.opened(self.host, memory.term)
        self.drain_soon()
        return True

    def drain_soon(self) -> None:
        """What came while this process stood still within a round comes now."""
        if self.backlog:
            self.host.timeline.after(0.0, self.drain)

    def changed(self) -> None:
        """Something certain was learned: decide soon."""
        if self.began and not self.due:
            self.due = True
            self.later(self.host.reaction, self._soon)

    def _soon(self) -> None:
        if self.due and not self.leaving:
            self.step()

    def point(self, name: str) -> None:
        """A place where this process may stand still; the schedule says where and for how long."""
        if self.stalls and (seconds := self.stalls.pop((self.host.name, name), None)) is not None:
            self.host.say(f"the agent stands still at {name!r} for {abs(seconds):.2f} s")
            if seconds < 0:  # and with it all of the host
                self.host.stand_still(True)
                self.host.timeline.after(-seconds, self.host.stand_still, False)
            self.wait_here(abs(seconds))

    # ---- eyes ------------------------------------------------------------------------------------------------------

    def clock(self) -> float:
        """The clock of its steering."""
        self.point("clock")
        now = self.host.seconds()
        self.point("looked")
        return now

    def listens(self, source: str) -> bool:
        """Whether there is a socket for heartbeats from there."""
        return self.began and self.links.listens(source)

    def receive(self, source: str, packet: Packet) -> None:
        """A heartbeat."""
        if self.links.receive(source, packet):
            self.changed()

    def refused(self, source: str) -> None:
        """The kernel there says that nobody listens."""
        if self.began and source in self.links.links:
            self.links.links[source].away = self.host.seconds()

    def look_at_frontend(self) -> None:
        """zot came or went."""
        if self.began:
            self.eyes.look_at_frontend(self.host.seconds(), 1)
            self.changed()

    def observe(self) -> Observation:
        """What is known at this moment."""
        self.point("observe")
        eyes, hands, now = self.eyes, self.hands, self.host.seconds()
        seen = Observation(
            frontend=eyes.frontend,
            storage=eyes.storage,
            storage_whole=True,
            manifest=eyes.reading,
            blob=eyes.reading,
            proxies=eyes.proxies,
            proxy_door=eyes.door,
            peers={name: link.view for name, link in self.links.links.items()},
            holds_vip=self.host.vip,
            fenced=self.steering.fenced,
            writable=hands.writable,
            wall_ms=int(self.host.wall() * 1000),
            kept=hands.kept,
            timer=hands.renewed,
            timer_there=hands.timer_there(now),
            moves_to=self.host.asked().to,
            yields=self.host.asked().yields,
            writes=int(self.host.timeline.now < self.host.busy_until),
        )
        self.point("observed")
        return seen

    # ---- leaving ---------------------------------------------------------------------------------------------------

    def leave(self) -> None:
        """SIGTERM: give up what this server has, and say goodbye, unless it is killed meanwhile."""
        self.leaving = True
        self.host.say("the agent leaves")
        self.host.write_claim(False, self.host.files_alone, self.host.files_behind)
        try:
            self.steering.shut()
            if self.steering.asks:
                self.hands.fence()
        except Ended:
            return
        self._goodbye()

    def _goodbye(self) -> None:
        if self.hands.fencing:
            self.later(0.01, self._goodbye)
            return
        for _ in range(FARE):
            self.links.say(self.steering.goodbye())
            self.links.send()
        self.host.agent.die()
