"""zot: a process that starts as a standby and reads its file again when it changes, most of the time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.simulation.process import Process

if TYPE_CHECKING:
    from tests.simulation.host import Host

WATCHES = 0.03  # seconds from reading the file at the start until a change of it is noticed


class ZotProcess(Process):
    """One life. *could_write* once it may have had the writing configuration: what it began then, it ends."""

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self.serves = False
        self.watches = False
        self.writes = False
        self.could_write = False
        self.dying = False  # killed: it serves nobody, but what lies in its sockets is still sent


class Zot:
    """The unit: the file, and the process that is there, if any."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.writing = False  # what the file says
        self.mark = False  # a file on tmpfs: a process may have had the writing configuration
        self.process: ZotProcess | None = None
        self.stays = 0.0  # seconds that a killed process still lives, on a disk that hangs

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.alive

    @property
    def could_write(self) -> bool:
        """A process lives that may have a write in hand."""
        return self.process is not None and self.process.alive and self.process.could_write

    def start(self) -> None:
        """systemd starts it: the standby's file is put in place first, and then a little time passes."""
        if self.alive or not self.host.on:
            return
        self.writing = False
        self.host.systemd.later(self.host.random.uniform(0.002, 0.02), self._execute)

    def _execute(self) -> None:
        if self.alive:
            return
        self.process = process = ZotProcess(self.host)
        self._read(process)
        process.later(WATCHES, self._watch, process)
        process.later(self.host.random.uniform(0.05, 0.3), self._serve, process)

    def _watch(self, process: ZotProcess) -> None:
        process.watches = True

    def _serve(self, process: ZotProcess) -> None:
        if process.dying:
            return
        process.serves = True
        self.host.frontend_news()

    def _read(self, process: ZotProcess) -> None:
        if process.dying:
            return
        process.writes = self.writing
        if self.host.world.single_writer and self.writing and not process.could_write:
            process.could_write = True
            self.host.world.could_write.add(self.host.name)
            self.host.say("zot may write")

    def put(self, writing: bool) -> bool:
        """Write the file in place; whether that changed it. A process that watches it takes it up a little later."""
        changed = self.writing is not writing
        self.writing = writing
        process = self.process
        if process is not None and process.alive and process.watches:
            process.later(self.host.random.uniform(0.03, 0.12), self._read, process)
        return changed

    def kill(self) -> ZotProcess | None:
        """SIGKILL: it is gone a moment later; the process that was hit, if there was one."""
        process = self.process
        if process is None or not process.alive:
            return None
        self.host.timeline.after(self.host.random.uniform(0.0005, 0.01), self._killed, process)
        return process

    def _killed(self, process: ZotProcess) -> None:
        if process.dying:
            return
        process.dying, process.serves = True, False
        self.host.timeline.after(self.stays, self.ended, process)

    def ended(self, process: ZotProcess) -> None:
        """The process is gone, by whatever; systemd starts the next."""
        if not process.alive:
            return
        process.kill()
        if self.process is not process:
            return
        self._can_write_no_more()
        self.host.say("zot is gone")
        self.host.frontend_news()
        self.host.systemd.later(0.2, self.start)

    def power_off(self) -> None:
        """All of it is gone at once, and what was on tmpfs."""
        if self.process is not None:
            self.process.kill()
        self.process = None
        self.writing = self.mark = False
        self._can_write_no_more()

    def _can_write_no_more(self) -> None:
        if self.host.world.single_writer:
            self.host.world.could_write.discard(self.host.name)
