"""One server: its kernel, its disk, and the units on it."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING

from kubeadm_registry.agent.heartbeat import Packet
from kubeadm_registry.agent.model import HardState
from kubeadm_registry.agent.moving import NOTHING, Request
from tests.simulation.agent import AgentProcess, Roster
from tests.simulation.disk import Disk
from tests.simulation.executor import Executor, ExecutorProcess
from tests.simulation.haproxy import Haproxy
from tests.simulation.keepalived import Keepalived
from tests.simulation.kernel import Clock, Timer
from tests.simulation.process import Process
from tests.simulation.systemd import AgentUnit, Systemd
from tests.simulation.timeline import Timeline
from tests.simulation.zot import Zot, ZotProcess

if TYPE_CHECKING:
    from tests.simulation.world import World

EPOCH = 1_795_000_000.0  # seconds since 1970 at the true time 0


class Host:
    """A server. All its processes share what its kernel knows."""

    def __init__(self, world: World, name: str, priority: int, roster: Roster) -> None:
        self.world = world
        self.timeline: Timeline = world.timeline
        self.random: Random = world.random
        self.name = name
        self.roster = roster
        self.used = True
        self.on = False
        self.still = False  # no process runs
        self.paused = False  # nor does the kernel: a virtual machine
        self.clock = Clock(0.0, 1.0, self.random.uniform(0.0, 1e5))
        self.jiffies = Clock(0.0, 1.0, 0.0)
        self.wall_offset = 0.0  # how wrong the wall clock is
        self.timer = Timer(world.timer_seconds, world.ticket_seconds)
        self.disk = Disk(world.random)
        self.vip = False
        self.files_fit = False
        self.files_alone = False
        self.files_behind = False
        self.move: tuple[Request, float] | None = None  # the file of what was asked for, and its end by the clock
        self.busy_until = 0.0  # true time until which writes are in flight
        self.systemd = Systemd(self)
        self.agent = AgentUnit(self)
        self.zot = Zot(self)  # the frontend; Distribution's is one without a writing configuration
        self.executor = Executor(self)
        self.haproxies = (Haproxy(self), Haproxy(self))
        self.keepalived = Keepalived(self, priority)
        self.agent_tick = 0.1  # seconds between two rounds of its agent
        self.reaction = 0.0005  # seconds from news to a round

    # ---- what its processes see ------------------------------------------------------------------------------------

    def seconds(self) -> float:
        """The clock that never steps."""
        return self.clock.at(self.timeline.now)

    def ticks(self) -> float:
        """What the kernel's timers go by."""
        return self.jiffies.at(self.timeline.now)

    def wall(self) -> float:
        """Seconds since 1970, as this host believes."""
        return EPOCH + self.timeline.now + self.wall_offset

    def asked(self) -> Request:
        """What its agent was asked for: a planned move, of the VIP or of the lease."""
        return self.move[0] if self.move is not None and self.seconds() < self.move[1] else NOTHING

    def peers(self) -> list[Host]:
        """The hosts that its configuration names, as far as they exist."""
        return [self.world.hosts[name] for name in self.roster.names if name != self.name]

    def say(self, text: str) -> None:
        """A line of the trace."""
        if self.world.tracing:
            self.world.say(self.name, text)

    # ---- from the network ------------------------------------------------------------------------------------------

    def heartbeat(self, source: str, packet: Packet) -> None:
        """A heartbeat arrives. A kernel without a socket for it says so, if its host lives."""
        if not self.on or self.paused:
            return
        agent = self.agent.process
        if agent is None or not agent.alive or not agent.listens(source):
            peer = self.world.hosts[source]
            self.world.network.send(self.name, source, peer.refusal, self.name)
            return
        agent.do(agent.receive, source, packet)

    def refusal(self, source: str) -> None:
        """The kernel learns that nobody listens there."""
        if self.on and not self.paused and self.agent.process is not None:
            self.agent.process.refused(source)

    def advert(self, source: str, priority: int) -> None:
        """An advert of VRRP arrives."""
        if self.name in self.world.network.filtered:
            return
        if self.on and not self.paused and source in self.roster.names:  # nftables drops what others send
            self.keepalived.heard(source, priority)

    # ---- what its processes do -------------------------------------------------------------------------------------

    def new_agent(self) -> AgentProcess:
        return AgentProcess(self)

    def address(self, here: bool) -> None:
        """The VIP comes or goes; the kernel tells the agent."""
        if self.vip is here:
            return
        self.vip = here
        self.say("has the VIP" if here else "has the VIP no more")
        agent = self.agent.process
        if agent is not None:
            self.timeline.after(0.001, agent.do, agent.changed)

    def write_claim(self, fit: bool, alone: bool, behind: bool) -> None:
        """The files that keepalived watches."""
        if (fit, alone, behind) != (self.files_fit, self.files_alone, self.files_behind):
            if fit is not self.files_fit:
                self.say("fit" if fit else "not fit")
            self.files_fit, self.files_alone, self.files_behind = fit, alone, behind
            self.timeline.after(0.002, self.keepalived.files_changed)

    def frontend_news(self) -> None:
        """zot came or went: the agent's probe notices at once."""
        agent = self.agent.process
        if agent is not None:
            self.timeline.after(0.003, agent.do, agent.look_at_frontend)

    def close_by_hand(self, done: Callable[[], None]) -> None:
        """What ``--close`` does: unfit, gates shut, the standby's file, the end of a zot that could write."""
        self.write_claim(False, self.files_alone, self.files_behind)
        for one in self.haproxies:
            one.set(False, 0)
        self._closing(self.end_acting(), done, self.timeline.now + 1.0)

    def _closing(self, hit: ZotProcess | ExecutorProcess | None, done: Callable[[], None], deadline: float) -> None:
        if hit is None or not hit.alive:
            self.zot.mark = False
            self.timer.disarm()
            done()
        elif self.timeline.now >= deadline:
            done()
        else:
            self.systemd.later(0.01, self._closing, hit, done, deadline)

    def end_acting(self) -> ZotProcess | ExecutorProcess | None:
        """What the fence does: the standby's file, and the end of a zot that may have had the other; which was hit.

        Where all may write it is the executor's end.
        """
        if not self.world.single_writer:
            return self.executor.kill()
        changed = self.zot.put(False)
        return self.zot.kill() if changed or self.zot.mark else None

    def read_hard_state(self) -> HardState:
        """What an agent finds when it starts; it syncs that first, for an earlier life may have been killed before."""
        self.disk.sync()
        return self.disk.cached

    # ---- what can be seen from outside -----------------------------------------------------------------------------

    def can_change_store(self) -> bool:
        """Whether a packet of a zot that may write gets to the storage at this moment, or a request of an executor."""
        if not self.world.single_writer:
            return self.executor.can_change_store()
        process = self.zot.process
        return process is not None and process.could_write and process.running and self.timer.passes(self.ticks())

    def open_to_writes(self) -> bool:
        """Whether a new write that comes now is passed on to zot."""
        return any(one.worker is not None and one.worker.running and one.worker.gate for one in self.haproxies)

    def gate_open(self) -> bool:
        """Whether a write can get through to a zot that may write, also by a worker of before a reload."""
        if not self.world.single_writer:
            return self.executor.can_change_store()
        process = self.zot.process
        return (
            process is not None
            and process.could_write
            and process.running
            and not process.dying
            and any(one.passes() for one in self.haproxies)
        )

    # ---- faults ----------------------------------------------------------------------------------------------------

    def processes(self) -> list[Process]:
        """All that are there."""
        found: list[Process | None] = [self.systemd, self.agent.process, self.zot.process, self.keepalived.process]
        found.append(self.executor.process)
        found += [one.worker for one in self.haproxies]
        return [one for one in found if one is not None and one.alive]

    def stand_still(self, still: bool) -> None:
        """All processes stand still, or go on, in any order."""
        if self.still is still or not self.on or (self.paused and not still):
            return  # nothing of a paused machine goes on
        self.still = still
        self.say("all processes stand still" if still else "all processes go on")
        if not still:
            found = self.processes()
            self.random.shuffle(found)
            for one in found:
                self.timeline.after(self.random.uniform(0.0, 0.02), one.drain)

    def pause(self, paused: bool) -> None:
        """The virtual machine is paused, clocks and all, or goes on."""
        if self.paused is paused or not self.on:
            return
        self.paused = paused
        for clock in (self.clock, self.jiffies):
            clock.pause(self.timeline.now, paused)
        self.stand_still(paused)

    def power_off(self, *, clean: bool = False) -> None:
        """Everything is gone at once; a *clean* one has synced the disk before."""
        if not self.on:
            return
        self.say("is off" if clean else "loses its power")
        self.on = False
        if clean:
            self.disk.sync()
        self.disk.lose_power()
        for one in self.processes():
            one.kill()
        self.still = self.paused = False
        self.zot.power_off()
        self.executor.power_off()
        for one_haproxy in self.haproxies:
            one_haproxy.power_off()
        self.keepalived.power_off()
        self.agent.process = None
        self.vip = self.files_fit = self.files_alone = self.files_behind = False
        self.move = None
        self.timer.disarm()
        self.timer.ticket, self.timer.there = 0.0, True

    def boot(self) -> None:
        """Power on; units start one after the other."""
        if self.on:
            return
        self.say("boots")
        now = self.timeline.now
        self.on = True
        self.clock = Clock(now, self.clock.rate, self.random.uniform(0.0, 30.0))
        self.jiffies = Clock(now, self.jiffies.rate, 0.0)
        self.timer.ticket = self.timer.lease = 0.0
        self.systemd = Systemd(self)
        for one in self.haproxies:
            self.systemd.later(self.random.uniform(0.05, 0.3), one.start)
        self.systemd.later(self.random.uniform(0.05, 0.3), self.zot.start)
        self.systemd.later(self.random.uniform(0.05, 0.3), self.agent.boot)
        self.systemd.later(self.random.uniform(0.3, 0.6), self.keepalived.start)

    def set_rate(self, rate: float) -> None:
        """Its clocks run at *rate*."""
        self.clock.set_rate(self.timeline.now, rate)
        self.jiffies.set_rate(self.timeline.now, rate)

    def change_members(self, roster: Roster) -> None:
        """It gets another list of members, and its agent takes it up; a server that is new starts."""
        self.roster = roster
        if self.used:
            if self.agent.process is None or not self.agent.process.settled():
                self.agent.reload()
        else:
            self.used = True
            self.boot()

    def heal(self) -> None:
        """Whatever is wrong with it ends."""
        self.wall_offset = 0.0
        self.set_rate(1.0)
        self.disk.delay = (0.001, 0.02)
        self.zot.stays = 0.0
        self.timer.there = True
        self.agent.close_seconds = (0.2, 0.9)
        self.agent.wanted = True
        if self.paused:
            self.pause(False)
        self.stand_still(False)
        for one in self.processes():
            one.go_on()
        self.boot()
        self.keepalived.wanted = True
        self.keepalived.start()
