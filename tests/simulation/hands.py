"""The hands of an agent, as ``kubeadm_registry.agent.steering.Hands`` names them, in a simulated host.

They do what ``kubeadm_registry.agent.hands``, ``gate``, ``timer`` and ``hardstate`` do to a real one. Each of them is
a place where the process may stand still in the midst of a round, for as long as the schedule says.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kubeadm_registry.agent.model import Decisions, HardState, Presence, Report
from kubeadm_registry.agent.steering import Servers, Steering

if TYPE_CHECKING:
    from tests.simulation.agent import AgentProcess
    from tests.simulation.executor import ExecutorProcess
    from tests.simulation.zot import ZotProcess

FENCE = 1.0  # seconds for one attempt
FENCE_AGAIN = 0.25
AGAIN = 0.5  # seconds after which a zot that still refuses writes is told once more
ASK = 1.0  # seconds between two looks whether the writing zot takes writes
RECENT = 1.0  # seconds: without a receipt of a ticket for so long there is no timer

SHUT: tuple[bool, int] = (False, 0)


class SimulatedHands:
    """What one life of the agent does."""

    def __init__(self, process: AgentProcess) -> None:
        self.process = process
        self.host = process.host
        self.steering: Steering | None = None
        self.kept = self.host.read_hard_state()
        self.renewed: float | None = None
        self.writable: bool | None = None
        self.fencing = False
        self.want = SHUT
        self._ticket_taken: float | None = None
        self._keeping = False
        self._written = self._asked = 0.0
        self._asking = False
        self._turn = 0

    def timer_there(self, now: float) -> bool:
        """Whether the kernel has such a timer: the newest receipts say so."""
        return self._ticket_taken is not None and now - self._ticket_taken < RECENT

    # ---- the kernel's timer and the disk ---------------------------------------------------------------------------

    def ticket(self) -> None:
        """A decision begins."""
        self.process.point("ticket")
        now = self.host.seconds()
        self._ticket_taken = now if self.host.timer.take_ticket(self.host.ticks()) else None

    def renew(self) -> None:
        """Let the timer run anew."""
        self.process.point("renew")
        sent = self.host.seconds()
        if self.host.timer.renew(self.host.ticks()):
            self.renewed = sent
        self.process.point("renewed")

    def keep(self, state: HardState, now: float) -> None:
        """Bring it to the disk in a thread."""
        self.process.point("keep")
        if self._keeping:
            return
        wanted = HardState(max(state.generation, self.kept.generation), max(state.epoch, self.kept.epoch))
        if wanted != self.kept:
            self._keeping = True
            seconds = self.host.disk.sync_seconds()
            self.process.later(seconds * self.host.random.random(), self.host.disk.write, wanted)
            self.process.later(seconds, self._is_kept, wanted)

    def _is_kept(self, state: HardState) -> None:
        self.host.disk.sync()
        self._keeping = False
        self.kept = state
        self.process.changed()

    # ---- HAProxy, keepalived, heartbeats ---------------------------------------------------------------------------

    def route(self, servers: Servers, epoch: int) -> None:
        """The gate of both HAProxy; where else they send requests is of no matter here."""
        self.process.point("route")
        if (servers["gate", "open"], epoch) != self.want:
            self.want = servers["gate", "open"], epoch
            self.correct()

    def correct(self) -> None:
        """Tell it again to those that have forgotten it."""
        for one in self.host.haproxies:
            if one.worker is not None and (one.worker.gate, one.worker.epoch) != self.want:
                one.set(*self.want)

    def claim(self, fit: bool, alone: bool, behind: bool, *, changed: bool) -> None:
        """What keepalived goes by."""
        self.process.point("claim")
        self.host.write_claim(fit, alone, behind)

    def say(self, report: Report) -> None:
        """From now on, and at once if it is news."""
        self.process.point("say")
        self.process.links.say(report)

    def mend(self, new: Decisions) -> None:
        """Of all mending what matters here: killing what hangs, and not answering who is silent."""
        if new.kill_frontend:
            self.host.zot.kill()
        for index in new.kill_proxies:
            self.host.haproxies[index].crash()
        if new.destroy and self.steering is not None:
            for name, _ in new.destroy:
                if self.steering.memory.peers[name].presence is Presence.SILENT:
                    self.process.links.links[name].inbox.mute()

    # ---- the fence -------------------------------------------------------------------------------------------------

    def fence(self) -> None:
        """Begin, unless it is going on."""
        if not self.fencing:
            self.fencing = True
            self.process.later(self.host.random.uniform(0.002, 0.1), self._fence)

    def _fence(self) -> None:
        hit = self.host.end_acting()
        self._await_end(hit, self.host.timeline.now + FENCE)

    def _await_end(self, hit: ZotProcess | ExecutorProcess | None, deadline: float) -> None:
        if hit is None or not hit.alive:
            self.host.zot.mark = False
            self.process.later(0.001, self._disarm)
        elif self.host.timeline.now >= deadline:
            self.process.later(FENCE_AGAIN, self._fence_again)
        else:
            self.process.later(0.005, self._await_end, hit, deadline)

    def _fence_again(self) -> None:
        self.fencing = False

    def _disarm(self) -> None:
        self.renewed = None
        self.host.timer.disarm()
        self.fencing = False
        if self.steering is not None:
            self.steering.fenced = True
        self.process.changed()

    # ---- the writing configuration ---------------------------------------------------------------------------------

    def write(self, now: float, *, writer: bool) -> None:
        """Give zot its writing configuration, and ask whether it took it."""
        self.process.point("write")
        if not writer and now - self._written >= AGAIN:
            self.host.zot.mark = True
            self.host.zot.put(True)
            self._written = now
        if not self._asking and (not writer or now - self._asked >= ASK):
            self._asking, self._asked = True, now
            self.process.later(self.host.random.uniform(0.002, 0.02), self._answer, self._turn)

    def _answer(self, turn: int) -> None:
        if turn != self._turn:
            return
        self._asking = False
        zot = self.host.zot.process
        if zot is None or not zot.running or not zot.serves or not self.host.timer.passes(self.host.ticks()):
            return
        if self.writable is not zot.writes:
            self.writable = zot.writes
            self.process.changed()

    def stop_writing(self) -> None:
        """Forget what zot said."""
        if self._written:
            self._turn += 1
            self.writable, self._asking, self._written, self._asked = None, False, 0.0, 0.0
