"""Ends what could act under the lease, and gives the one writer its writing or its standby configuration.

The frontend watches its file by inode: a rename is never noticed, a truncation logs a failed reload of nothing. So
the file is written over in place by one write, padded with blanks to the length it has (JSON does not mind).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Callable, Optional

from kubeadm_registry.agent.clock import clock
from kubeadm_registry.agent.config import Config, Frontend
from kubeadm_registry.agent.exchange import Exchange, Kind, Outcome, http_answer, http_complete, http_request
from kubeadm_registry.agent.processes import Processes

POLL = 0.005  # seconds
MOMENT = 0.25  # seconds in which killed processes are gone, unless something holds them
AGAIN = 0.5  # seconds after which a frontend that still refuses writes is told once more
PATIENCE = 1.0  # seconds for an answer
REFUSES = frozenset({401, 403})
NO_UPLOAD = "/v2/{}/blobs/uploads/00000000-0000-4000-8000-000000000000"


def put(path: Path, content: bytes, *, again: bool = False) -> bool:
    """Make the file *path* hold *content*, in place; whether it was written. With *again* also if it holds it already.

    Raises OSError, FileNotFoundError if there is no such file: it comes with the frontend's unit.
    """
    handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        length = os.fstat(handle).st_size
        text = content.rstrip()
        text += b" " * (max(length, len(content)) - len(text) - 1) + b"\n"
        if not again and os.pread(handle, length, 0) == text:
            return False
        if os.pwrite(handle, text, 0) != len(text):
            raise OSError(f"{path}: only a part was written")
        return True
    finally:
        os.close(handle)


class Gate:
    """The frontend of a node when only one node may write.

    The file *mark* is there while a frontend process may have had its writing configuration, also across a crash of
    the agent.
    """

    def __init__(self, frontend: Frontend, processes: Processes, mark: Path) -> None:
        self._frontend = frontend
        self._processes = processes
        self._mark = mark

    def writing(self, *, again: bool = False) -> bool:
        """Give the running frontend its writing configuration; whether that wrote anything. Raises OSError.

        A frontend that has just started may have read its standby configuration, and not yet have watched the file
        when it was written: *again* makes it look once more.
        """
        self._leave_mark()
        return put(Path(self._frontend.runtime_config), Path(self._frontend.writer_config).read_bytes(), again=again)

    def _leave_mark(self) -> None:
        """Make the mark, unless it is there; an empty one where the file system is full. Raises OSError."""
        if not self._mark.exists():
            try:
                self._mark.write_text(f"{self._frontend.unit}\n", encoding="ascii")
            except OSError:
                self._mark.touch()

    async def fence(self, deadline: float) -> bool:
        """End the frontend process that could write; whether it is known to be gone. Raises OSError.

        Nothing is ended when no process can have had the writing configuration. The next process starts with the
        standby configuration. No write of a killed process reached the store later (measured).
        """
        try:
            changed = put(Path(self._frontend.runtime_config), Path(self._frontend.standby_config).read_bytes())
        except FileNotFoundError:
            changed = False  # no frontend has started yet, or it never will
        except OSError:
            changed = True  # what it has cannot be known
        if not changed and not self._mark.exists():
            return True
        before = self._processes.identities()
        if not before and await self._answers():
            unit = self._frontend.unit
            raise OSError(f"it answers, yet no process of {unit} is to be seen; is /proc mounted with hidepid?")
        self._processes.kill()
        end = clock() + deadline
        while self._processes.alive(before):
            if clock() >= end:
                return False
            await asyncio.sleep(POLL)
        self._mark.unlink(missing_ok=True)
        return True

    async def _answers(self) -> bool:
        """Whether somebody listens on the frontend's port."""
        where = (self._frontend.address, self._frontend.port)
        try:
            _, writer = await asyncio.wait_for(asyncio.open_connection(*where), PATIENCE)
        except ConnectionRefusedError:
            return False
        except (OSError, asyncio.TimeoutError):
            return True  # not known to be gone
        writer.close()
        return True


class Executor:
    """The processes on this node that carry out retention."""

    def __init__(self, processes: Processes) -> None:
        self._processes = processes

    async def fence(self, deadline: float) -> bool:
        """End them, and what they start meanwhile: True. Raises OSError.

        One that is killed runs no more, also while it waits for its disk and is still there. Its connections are cut by
        the kernel's timer. So none is waited for longer than a moment: the next writer waits for this.
        """
        end = clock() + min(deadline, MOMENT)
        while self._processes.find() and clock() < end:
            self._processes.kill()
            await asyncio.sleep(POLL)
        return True


def acting(config: Config, frontend: Processes) -> list[Gate | Executor]:
    """What could act under the lease on this node, whose frontend has the processes *frontend*."""
    found: list[Gate | Executor] = []
    if config.executor is not None:
        found.append(Executor(Processes(config.executor.unit)))
    if config.writer == "single":
        found.append(Gate(config.frontend, frontend, Path(config.paths.mark)))
    return found


async def fence(those: Iterable[Gate | Executor], deadline: float) -> bool:
    """End all of *those* at the same time; whether they are known to be gone. Raises OSError."""
    return all(await asyncio.gather(*(one.fence(deadline) for one in those)))


class Writer:
    """Makes the frontend of this node a writing one, and knows whether it takes writes.

    It is asked to end an upload that does not exist: a standby says that this is not allowed, a writer that there is
    none.
    """

    def __init__(self, config: Config, gate: Gate, changed: Callable[[], None]) -> None:
        self.writable: Optional[bool] = None
        self._gate = gate
        self._changed = changed
        self._interval = config.timings.writable_interval
        self._loop = asyncio.get_running_loop()
        self._where = (config.frontend.address, config.frontend.port)
        repository = config.canary.repository if config.canary is not None else "canary"
        host = f"{config.frontend.address}:{config.frontend.port}"
        self._request = http_request(host, NO_UPLOAD.format(repository), method="DELETE")
        self._turn = 0  # answers to questions of an earlier turn say nothing
        self._asking = False
        self._written = self._asked = 0.0

    def reset(self) -> None:
        """This node does not write any more."""
        if self._written:
            self._turn += 1
            self.writable, self._asking, self._written, self._asked = None, False, 0.0, 0.0

    def tick(self, now: float, writer: bool) -> None:
        """Give the frontend its writing configuration and ask whether it took it; rarely, once it is the *writer*."""
        if not writer and now - self._written >= AGAIN:
            self._gate.writing(again=bool(self._written))
            self._written = now
        if not self._asking and (not writer or now - self._asked >= self._interval):
            self._asking, self._asked = True, now
            turn = self._turn
            Exchange(
                self._loop,
                self._where,
                self._request,
                deadline=PATIENCE,
                done=lambda outcome: self._answer(turn, outcome),
                complete=http_complete,
            )

    def _answer(self, turn: int, outcome: Outcome) -> None:
        if turn != self._turn:
            return
        self._asking = False
        status = http_answer(outcome.data)[0] if outcome.kind is Kind.ANSWERED else 0
        if 0 < status < 500 and self.writable is not (status not in REFUSES):
            self.writable = status not in REFUSES
            self._changed()
