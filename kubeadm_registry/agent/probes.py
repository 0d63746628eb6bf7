"""Asks the processes of this node whether they live, and reads the known object through them."""

from __future__ import annotations

import asyncio
import hashlib
import ssl
from typing import Callable, Optional

from kubeadm_registry.agent.clock import clock
from kubeadm_registry.agent.config import Config
from kubeadm_registry.agent.exchange import Exchange, Kind, Outcome, http_answer, http_complete, http_request
from kubeadm_registry.agent.model import Answers, Reading, Verdict
from kubeadm_registry.agent.pressure import Pressure
from kubeadm_registry.agent.processes import Processes
from kubeadm_registry.agent.timings import Timings

PATIENCE = 1.0  # seconds: a late answer is not good, but proves that the process lives
LOOK = 0.15  # seconds of silence after which the CPU time of the process is watched
MISSING = 404


class Answered:
    """What the probes of one process saw, and since when it has neither used the CPU nor waited for it.

    *diskless*: it has no business with a disk. Where the kernel has it wait for one (state D), it waits for a page of
    its own memory, of which ``pages_read`` tells only afterwards.
    """

    def __init__(
        self, processes: Optional[Processes] = None, pressure: Optional[Pressure] = None, *, diskless: bool = False
    ) -> None:
        self._processes = processes
        self._diskless = diskless
        self._pressure = pressure or Pressure()
        self.first = clock()
        self.answered: Optional[float] = None
        self.good: Optional[float] = None
        self.streak = 0
        self.refused = False
        self.seconds = 0.0  # that the newest answer took
        self._newest = 0.0
        self._cpu: Optional[float] = None
        self._idle: Optional[float] = None
        self._pages: Optional[int] = None
        self._paged: Optional[float] = None

    def take(self, outcome: Outcome, deadline: float) -> bool:
        """Learn from one probe. Whether it changed what is certain: refused or not."""
        before = self.refused
        if outcome.kind is Kind.ANSWERED:
            self.answered = outcome.ended
            self.refused = False
            self.seconds = outcome.ended - outcome.started
        if outcome.started < self._newest:
            return self.refused is not before
        self._newest = outcome.started
        if outcome.kind is Kind.ANSWERED and self.seconds <= deadline:
            self.good = outcome.ended
            self.streak += 1
        else:
            self.streak = 0
            self.refused = outcome.kind is Kind.REFUSED
        return self.refused is not before

    def watch(self, now: float) -> None:
        """Look at the CPU time of the process and at its memory, if its silence makes that worth while."""
        if self._processes is None or (self.answered is not None and now - self.answered < LOOK):
            return
        cpu = self._processes.cpu()
        if cpu is None:
            self._cpu = self._idle = self._pages = self._paged = None
            return
        pages = self._processes.pages_read()
        works = cpu != self._cpu
        states = self._processes.states() if self._diskless or not works else ()
        read = pages != self._pages and self._pages is not None
        if self._pressure.short(now) or read or (self._diskless and "D" in states):
            self._paged = self._idle = now
        if works or "R" in states:
            self._idle = now
        self._cpu, self._pages = cpu, pages

    @property
    def answers(self) -> Answers:
        """What the rules may know of it."""
        silent = self.answered is None or clock() - self.answered >= LOOK
        idle, paged = (self._idle, self._paged) if silent else (None, None)
        return Answers(self.first, self.answered, self.good, self.streak, self.refused, idle, paged)


class Read:
    """What the reads of one known object saw."""

    def __init__(self, digest: str) -> None:
        self._digest = digest.partition(":")[2]
        self.first = clock()
        self.good: Optional[float] = None
        self.streak = 0
        self.fault: Optional[Verdict] = None
        self.status = 0
        self.seconds = 0.0
        self._newest = 0.0

    def take(self, outcome: Outcome) -> bool:
        """Learn from one read. Whether its fault changed."""
        if outcome.started < self._newest:
            return False
        self._newest = outcome.started
        before, fault = self.fault, None
        if outcome.kind is Kind.ANSWERED:
            self.seconds = outcome.ended - outcome.started
            self.status, body = http_answer(outcome.data)
            if self.status == 200 and hashlib.sha256(body).hexdigest() == self._digest:
                self.good = outcome.ended
                self.streak += 1
                self.fault = None
                return before is not None
            fault = Verdict.MISSING if self.status == MISSING else Verdict.WRONG
        elif outcome.kind is Kind.TIMEOUT:
            fault = Verdict.SLOW
        self.streak = 0
        self.fault = fault or self.fault
        return self.fault is not before

    @property
    def reading(self) -> Reading:
        """What the rules may know of it."""
        return Reading(self.first, self.good, self.streak, self.fault)


class Probes:
    """All probes of this node: frontend, storage, known object, public door. *changed* is called on certain news."""

    def __init__(
        self, config: Config, frontend: Processes, storage: Optional[Processes], changed: Callable[[], None]
    ) -> None:
        self._config = config
        self._timings: Timings = config.timings
        self._changed = changed
        self._loop = asyncio.get_running_loop()
        self.frontend = Answered(frontend)
        self.storage = Answered(storage) if config.storage is not None else None
        self.storage_whole = False
        self.door = Answered()
        self.manifest = Read(config.canary.manifest) if config.canary else None
        self.blob = Read(config.canary.blob) if config.canary else None
        self._next: dict[str, float] = {}
        self._open: set[Exchange] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._tls.check_hostname = False
        self._tls.verify_mode = ssl.CERT_NONE
        host = f"{config.frontend.address}:{config.frontend.port}"
        self._ping = http_request(host, "/v2/")
        self._health = b""
        if config.storage is not None:
            self._health = http_request(
                f"{config.storage.admin_address}:{config.storage.admin_port}", config.storage.health_path
            )
        self._reads = (b"", b"")
        if config.canary is not None:
            where = f"/v2/{config.canary.repository}"
            self._reads = (
                http_request(host, f"{where}/manifests/{config.canary.manifest}", accept=config.canary.media_type),
                http_request(host, f"{where}/blobs/{config.canary.blob}"),
            )

    def tick(self, now: float) -> None:
        """Start what is due."""
        timings = self._timings
        if self._due("alive", timings.probe_interval, now):
            self.probe_frontend()
            self.probe_storage()
        if self.manifest is not None and self._due("manifest", timings.canary_interval, now):
            self._read(self.manifest, self._reads[0])
        if self.blob is not None and self._due("blob", timings.blob_interval, now):
            self._read(self.blob, self._reads[1])
        if self._due("door", timings.door_interval, now):
            task = self._loop.create_task(self._try_door())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        self.frontend.watch(now)
        if self.storage is not None:
            self.storage.watch(now)

    def _due(self, name: str, interval: float, now: float) -> bool:
        if now < self._next.get(name, 0.0):
            return False
        due = self._next.get(name, now) + interval
        self._next[name] = due if due > now else now + interval
        return True

    def _ask(self, address: tuple[str, int], request: bytes, deadline: float, done: Callable[[Outcome], None]) -> None:
        def end(outcome: Outcome) -> None:
            self._open.discard(exchange)
            done(outcome)

        exchange = Exchange(self._loop, address, request, deadline=deadline, done=end, complete=http_complete)
        self._open.add(exchange)

    def probe_frontend(self) -> None:
        """Ask the frontend for ``/v2/``: any answer counts."""
        where = (self._config.frontend.address, self._config.frontend.port)
        self._ask(where, self._ping, PATIENCE, lambda outcome: self._lives(self.frontend, outcome))

    def probe_storage(self) -> None:
        """Ask Garage for its health: any answer counts, its text says whether all members are connected."""
        storage = self._config.storage
        if storage is None:
            return

        def done(outcome: Outcome) -> None:
            if outcome.kind is Kind.ANSWERED:
                status, body = http_answer(outcome.data)
                self.storage_whole = status == 200 and b"fully operational" in body
            if self.storage is not None:
                self._lives(self.storage, outcome)

        self._ask((storage.admin_address, storage.admin_port), self._health, PATIENCE, done)

    def _lives(self, what: Answered, outcome: Outcome) -> None:
        if what.take(outcome, self._timings.probe_deadline):
            self._changed()

    def _read(self, what: Read, request: bytes) -> None:
        def done(outcome: Outcome) -> None:
            if what.take(outcome):
                self._changed()

        where = (self._config.frontend.address, self._config.frontend.port)
        self._ask(where, request, self._timings.canary_deadline, done)

    async def _try_door(self) -> None:
        """One TLS connection to the public port and a request for ``/healthz``."""
        started, kind = clock(), Kind.BROKEN
        writer = None
        try:
            reader, writer = await asyncio.wait_for(
                asyncio.open_connection(self._config.address, self._config.ports.public, ssl=self._tls), PATIENCE
            )
            writer.write(http_request(self._config.address, "/healthz"))
            data = await asyncio.wait_for(reader.read(), PATIENCE)
            kind = Kind.ANSWERED if http_answer(data)[0] == 200 else Kind.BROKEN
        except ConnectionRefusedError:
            kind = Kind.REFUSED
        except asyncio.TimeoutError:
            kind = Kind.TIMEOUT
        except OSError:
            pass
        finally:
            if writer is not None:
                writer.transport.abort()
        if self.door.take(Outcome(kind, b"", started, clock()), PATIENCE):
            self._changed()

    def close(self) -> None:
        """Stop asking."""
        for exchange in tuple(self._open):
            exchange.cancel()
        for task in tuple(self._tasks):
            task.cancel()
