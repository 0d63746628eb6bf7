"""What all processes of a simulated host have in common: they run, stand still, or are gone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.simulation.timeline import Action

if TYPE_CHECKING:
    from tests.simulation.host import Host


class Ended(BaseException):
    """The process was killed in the middle of what it did: nothing more of that happens.

    Not an Exception, since no code under test may catch it.
    """


class Process:
    """One life of one process. What comes while it stands still waits, as in a socket or in the queue of timers."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.alive = True
        self.stopped = False  # this process alone, by SIGSTOP or for want of the CPU
        self.busy = False  # in the middle of something that does not return yet
        self.backlog: list[tuple[Action, tuple[Any, ...]]] = []

    @property
    def running(self) -> bool:
        """Whether it can do anything right now."""
        return self.alive and not self.stopped and not self.host.still

    def do(self, action: Action, *arguments: Any) -> None:
        """Do something now, or when this process runs again; never if it is gone by then."""
        if not self.alive:
            return
        if self.stopped or self.busy or self.host.still:
            self.backlog.append((action, arguments))
            return
        action(*arguments)

    def later(self, delay: float, action: Action, *arguments: Any) -> None:
        """Do something in *delay* seconds."""
        self.host.timeline.after(delay, self.do, action, *arguments)

    def drain(self) -> None:
        """Do what has waited; in which order timers and sockets come is left to chance."""
        if not self.running or self.busy or not self.backlog:
            return
        waiting, self.backlog = self.backlog, []
        if self.host.random.random() < 0.5:
            waiting.append(waiting.pop(0))
        for action, arguments in waiting:
            self.do(action, *arguments)

    def stop(self) -> None:
        """Let it stand still."""
        self.stopped = True

    def go_on(self) -> None:
        """Let it run again."""
        self.stopped = False
        self.drain()

    def kill(self) -> None:
        """End it."""
        self.alive = False
        self.backlog = []

    def wait_here(self, seconds: float) -> None:
        """Stand still in the middle of what this process does, while all others go on. Raises Ended if it is killed."""
        self.busy = True
        try:
            self.host.timeline.run(self.host.timeline.now + seconds)
            while self.alive and (self.stopped or self.host.still) and not self.host.timeline.done:
                before = self.host.timeline.now
                self.host.timeline.run(before + 0.05)
                if self.host.timeline.now <= before:  # inside another standstill that is over
                    break
        finally:
            self.busy = False
        if not self.alive or self.host.timeline.done:
            raise Ended
