"""systemd, as far as the agent's unit needs it: the watchdog, what follows a death, and the next start."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.simulation.process import Process

if TYPE_CHECKING:
    from tests.simulation.agent import AgentProcess
    from tests.simulation.host import Host

WATCHDOG = 2.0  # seconds
RESTART = 0.2


class Systemd(Process):
    """One life of it, from boot to the end of power. Its own timers wait like all others while the host is still."""


class AgentUnit:
    """kubeadm-registry-agent.service."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.process: AgentProcess | None = None
        self.fed = 0.0  # when the agent last said that it is well
        self.close_seconds = (0.2, 0.9)  # how long ``--close`` takes
        self.start_seconds = (0.15, 0.6)  # from the start of Python to the first round
        self.wanted = True
        self._watched = False

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.alive

    def start(self) -> None:
        """Start the agent, from the files as they are by then."""
        if not self.host.on or self.running or not self.wanted:
            return
        self._spawn(takes_over=False)

    def _spawn(self, *, takes_over: bool) -> None:
        process = self.process = self.host.new_agent()
        self.fed = self.host.timeline.now
        process.later(self.host.random.uniform(*self.start_seconds), process.begin, takes_over)
        if not self._watched:
            self._watched = True
            self.host.systemd.later(WATCHDOG, self._watch)

    def notify(self) -> None:
        """WATCHDOG=1"""
        self.fed = self.host.timeline.now

    def _watch(self) -> None:
        if not self.running:
            self._watched = False
            return
        left = self.fed + WATCHDOG - self.host.timeline.now
        if left > 1e-6:
            self.host.systemd.later(left, self._watch)
            return
        self._watched = False
        self.host.say("systemd: the agent says nothing, killed")
        self.die()

    def die(self) -> None:
        """The agent is gone, by whatever."""
        if self.process is None or not self.process.alive:
            return
        self.process.kill()
        self.stop_post()

    def stop_post(self) -> None:
        """ExecStopPost: end zot without Python; then --close, which takes its time; then the next start."""
        systemd, random = self.host.systemd, self.host.random
        systemd.later(random.uniform(0.005, 0.05), self._end_acting)
        began = random.uniform(*self.close_seconds)
        systemd.later(0.05 + began, self._close)

    def _end_acting(self) -> None:
        self.host.executor.kill()
        if self.host.zot.mark:
            self.host.zot.kill()

    def _close(self) -> None:
        self.host.close_by_hand(self._closed)

    def _closed(self) -> None:
        self.host.systemd.later(RESTART, self.start)

    def reload(self) -> None:
        """SIGHUP: the same process, executed anew; nothing is given up."""
        process = self.process
        if process is None or not process.alive or not process.began:
            return
        process.do(self._execute_anew, process)

    def _execute_anew(self, process: AgentProcess) -> None:
        self.host.say("agent: executed anew")
        fed = self.fed
        process.kill()
        self._spawn(takes_over=True)
        self.fed = fed

    def restart(self) -> None:
        """SIGTERM, and a start after it."""
        process = self.process
        if process is not None and process.alive and process.began and not process.leaving:
            process.do(process.leave)

    def awake(self, seconds: float) -> bool:
        """Whether the agent has run for so long without a gap, and still does."""
        process = self.process
        if process is None or not process.running or process.leaving:
            return False
        now = self.host.timeline.now
        return now - process.last_round <= seconds and now - process.awake_since >= seconds

    def boot(self) -> None:
        """A boot of the host."""
        self._watched = False
        self.start()
