"""Tells the HAProxy processes of this node where reads and writes go, and again whenever one has forgotten it.

A restarted or reloaded HAProxy is back in its state on disk, so what it does is compared with what it should do all
the time, on a new connection each time: an old connection would go on talking to the process of before a reload.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Container
from functools import partial
from typing import Callable, Optional

from kubeadm_registry.agent import pushes
from kubeadm_registry.agent.config import Config
from kubeadm_registry.agent.exchange import Exchange, Kind, Outcome
from kubeadm_registry.agent.probes import PATIENCE, Answered
from kubeadm_registry.agent.processes import Processes
from kubeadm_registry.agent.steering import Servers

FORCED_MAINTENANCE = 0x01
DRAINING = 0x08
#: What passes on writes to the frontend of this node or another, but those of retention, which end with the lease.
WRITERS = ("writer", "own_write")
STATISTICS = "# pxname,"  # begins what ``show stat`` says
EPOCH = re.compile(r"^0x[0-9a-f]+ epoch (\d+)$", re.MULTILINE)  # in what ``show map`` says


def parse(text: str) -> Servers:
    """What ``show servers state`` says."""
    servers = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) > 6 and words[0].isdigit() and words[6].isdigit():
            servers[words[1], words[3]] = not int(words[6]) & (FORCED_MAINTENANCE | DRAINING)
    return servers


def changes(want: Servers, have: Servers, shared: Container[str]) -> Servers:
    """What of *have* is not as in *want*, in the order to change it. Servers that HAProxy does not know are left out.

    In the backends *shared* a server is opened before another one is closed, in others the other way round: there is no
    moment without a reader, and none with two writers where one alone may write.
    """
    ordered = sorted((takes is not (key[0] in shared), key, takes) for key, takes in want.items() if key in have)
    return {key: takes for _, key, takes in ordered if have[key] is not takes}


def command(server: tuple[str, str], takes: bool) -> str:
    """What has *server* take requests, or none."""
    return f"set server {'/'.join(server)} state {'ready' if takes else 'maint'}"


class Proxy:
    """One HAProxy process, by its runtime socket."""

    def __init__(self, config: Config, path: str, changed: Callable[[], None], log: Callable[[str, str], None]) -> None:
        self.path = path
        self.processes = Processes()
        self.answered = Answered(self.processes, diskless=True)
        self.pid = 0
        self.have: Servers = {}
        self.corrections = 0
        self.writes: Optional[int] = None
        """Writing requests that it passes on, as of when it was last asked; None: not known, or not asked."""
        self.counts = False
        """Whether to ask for them."""
        self._map = config.proxy.epoch_map if config.settings.leased else ""
        self._shared = ("reads",) if config.settings.single_writer else ("reads", "writer")
        self._pushes = config.proxy.pushes_map
        self._reserved = True  # an agent before this one may have closed pushes
        self._deadline = config.timings.probe_deadline
        self._interval = config.timings.proxy_interval
        self._changed = changed
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._want: Servers = {}
        self._epoch = 0
        self._has_epoch = ""  # as its map was last seen
        self._next = 0.0
        self._open: set[Exchange] = set()
        self._changing: set[Exchange] = set()  # what changes servers, and the look after it
        self._changed_at = 0.0  # what was asked earlier may be older than a change
        self._waiting: list[asyncio.Future[bool]] = []
        ask = "show servers state" + (f";show map {self._map}" if self._map else "")
        self._ask = ask

    def want(self, servers: Servers, epoch: int) -> None:
        """From now on the servers should be so. What differs from what was last seen is sent at once."""
        if servers == self._want and epoch == self._epoch:
            return
        self._want, self._epoch = servers, epoch
        self._correct()

    def _correct(self) -> bool:
        """Send what differs from what was last seen; whether anything does.

        HAProxy serves its connections side by side: what is sent on another one while a change is under way may be done
        before it. So only what closes writes goes at once then, and the rest after a look. The epoch comes first: no
        upload of an earlier writer may pass to a new one in between.
        """
        due = changes(self._want, self.have, self._shared)
        renamed = bool(self._map and self._epoch and self.have and self._has_epoch != str(self._epoch))
        if not due and not renamed:
            return False
        if self._changing:
            due = {key: takes for key, takes in due.items() if not takes and key[0] not in self._shared}
        text = [command(*one) for one in due.items()]
        if renamed:
            text.insert(0, f"set map {self._map} epoch {self._epoch}")
            self._has_epoch = str(self._epoch)
        if text:
            self.have = {**self.have, **due}
            self._change((";".join(text) + "\n").encode(), self._changed_servers)
        return True

    def _change(self, request: bytes, done: Callable[[Outcome], None]) -> None:
        def end(outcome: Outcome) -> None:
            self._changing.discard(exchange)
            done(outcome)

        exchange = self._exchange(request, end)
        self._changing.add(exchange)

    def _changed_servers(self, outcome: Outcome) -> None:
        self._complain(outcome)
        self._changed_at = outcome.ended
        if not self._changing:
            self._change(self._question(), partial(self._asked, looks=True))

    def reserve(self, seconds: int, wall: float) -> None:
        """Take no push for *seconds* from now, *wall* in seconds since 1970, for the disk is nearly full; 0: take them.

        It is said again while that is so, and ends by itself when nobody says it any more.
        """
        if seconds or self._reserved:
            self._reserved = bool(seconds)
            until = int(wall) + seconds if seconds else 0
            self._exchange(f"set map {self._pushes} full {until}\n".encode(), self._complain)

    def tick(self, now: float) -> None:
        """Ask what the servers are, if it is time."""
        if now >= self._next:
            self._next = now + self._interval
            self.ask()
        self.answered.watch(now)

    def ask(self) -> None:
        """Ask what the servers are, and correct them."""
        self._exchange(self._question(), self._asked)

    def _question(self) -> bytes:
        return f"{self._ask}{';show stat' if self.counts else ''}\n".encode()

    async def settled(self, deadline: float) -> bool:
        """Whether the process was seen as it should be within *deadline* seconds.

        A process that is not there passes on nothing, and counts as well.
        """
        future: asyncio.Future[bool] = self._loop.create_future()
        self._waiting.append(future)
        self.ask()
        try:
            return await asyncio.wait_for(future, deadline)
        except asyncio.TimeoutError:
            return False
        finally:
            if future in self._waiting:
                self._waiting.remove(future)

    def _exchange(self, request: bytes, done: Callable[[Outcome], None]) -> Exchange:
        def end(outcome: Outcome) -> None:
            self._open.discard(exchange)
            done(outcome)

        exchange = Exchange(self._loop, self.path, request, deadline=PATIENCE, done=end)
        self._open.add(exchange)
        return exchange

    def _asked(self, outcome: Outcome, *, looks: bool = False) -> None:
        news = self.answered.take(outcome, self._deadline)
        if outcome.kind is Kind.ANSWERED:
            text, mark, statistics = outcome.data.decode(errors="replace").partition(STATISTICS)
            self.writes = pushes.writes(mark + statistics, WRITERS) if mark else None
            if outcome.pid != self.pid:
                self.pid = outcome.pid
                self.processes.follow(outcome.pid)
            if looks or not (self._changing or outcome.started < self._changed_at):
                self._see(text, looks=looks)
        elif outcome.kind is Kind.REFUSED:
            self.have, self.writes = {}, 0
            self._release()
        if news:
            self._changed()

    def _see(self, text: str, *, looks: bool) -> None:
        self.have = parse(text)
        found = EPOCH.search(text)
        self._has_epoch = found[1] if found is not None else ""
        if self._correct():
            self.corrections += not looks  # else it is wanted otherwise by now
        else:
            self._release()

    def _complain(self, outcome: Outcome) -> None:
        complaint = outcome.data.decode(errors="replace").strip()
        if outcome.kind is Kind.ANSWERED and complaint:
            self._log("proxy-refused", f"{self.path} answered: {complaint.splitlines()[0]}")

    def _release(self) -> None:
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(True)

    def close(self) -> None:
        """Stop asking."""
        for exchange in tuple(self._open):
            exchange.cancel()
