"""What carries out retention where all may write: a process that acts under the lease, by HAProxy and the kernel.

It is the worst that can be: it is started again whenever it is gone, believes what the agent's file says, however old
that is, and sends requests under that term until somebody ends it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.simulation.process import Process

if TYPE_CHECKING:
    from tests.simulation.haproxy import HaproxyProcess
    from tests.simulation.host import Host


class ExecutorProcess(Process):
    """One life, under one *term*, with a connection to each of the workers that were there when it began."""

    def __init__(self, host: Host, term: int) -> None:
        super().__init__(host)
        self.term = term
        self.dying = False  # killed: the kernel sends nothing more of it
        self.workers: set[HaproxyProcess] = set()


class Executor:
    """The unit: the process that is there, if any, and what the agent's file says."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.told: int | None = None  # the term under which this node has the lease, by the agent's file
        self.process: ExecutorProcess | None = None

    @property
    def could_write(self) -> bool:
        """A process lives that may have a request in hand."""
        return self.process is not None and self.process.alive

    def tell(self, term: int | None) -> None:
        """The agent writes its file."""
        if term == self.told:
            return
        self.told = term
        self.start_soon()
        if term is not None and self.process is not None and self.process.term != term:
            # Sooner or later it hears that its term is over.
            self.process.later(self.host.random.uniform(0.1, 1.0), self._ended, self.process)

    def start_soon(self) -> None:
        self.host.systemd.later(self.host.random.uniform(0.01, 0.3), self._start)

    def _start(self) -> None:
        if not self.host.on or self.could_write or self.told is None:
            return
        self.process = ExecutorProcess(self.host, self.told)
        self.host.world.could_write.add(self.host.name)
        self.host.say(f"an executor begins under term {self.told}")

    def can_change_store(self) -> bool:
        """Whether a request that it sends now is passed on to this node's frontend."""
        process = self.process
        if process is None or not process.running or process.dying:
            return False
        if not self.host.timer.passes_executor(self.host.ticks()):
            return False
        process.workers |= {one.worker for one in self.host.haproxies if one.worker is not None and one.worker.running}
        return any(one.running and one.gate and one.epoch == process.term for one in process.workers)

    def kill(self) -> ExecutorProcess | None:
        """SIGKILL: it is gone a moment later; the process that was hit, if there was one."""
        process = self.process
        if process is None or not process.alive:
            return None
        self.host.timeline.after(self.host.random.uniform(0.0005, 0.01), self._killed, process)
        return process

    def _killed(self, process: ExecutorProcess) -> None:
        if not process.dying:
            process.dying = True
            self.host.timeline.after(self.host.zot.stays, self._ended, process)

    def _ended(self, process: ExecutorProcess) -> None:
        if not process.alive:
            return
        process.kill()
        if self.process is process:
            self.host.world.could_write.discard(self.host.name)
            self.host.say("the executor is gone")
            self.start_soon()

    def power_off(self) -> None:
        """All of it is gone at once, and the file on tmpfs."""
        if self.process is not None:
            self.process.kill()
        self.process, self.told = None, None
        self.host.world.could_write.discard(self.host.name)
