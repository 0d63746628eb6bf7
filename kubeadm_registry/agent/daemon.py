"""The loop: sees, decides by the rules and does what they say, twenty times a second and at certain news."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import ssl
import time
from collections.abc import Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any, Optional

from kubeadm_registry import __version__
from kubeadm_registry.agent import certificate, proxy, rules, status
from kubeadm_registry.agent.clock import clock
from kubeadm_registry.agent.config import Config
from kubeadm_registry.agent.epoch import Epoch, known
from kubeadm_registry.agent.garage import Garage
from kubeadm_registry.agent.gate import Gate, Writer
from kubeadm_registry.agent.guard import Guard
from kubeadm_registry.agent.heartbeat import LEAST_KEY
from kubeadm_registry.agent.lease import ASKS
from kubeadm_registry.agent.log import Log, described
from kubeadm_registry.agent.model import (
    Decisions,
    Health,
    LeaseMemory,
    Level,
    Memory,
    Observation,
    Presence,
    Report,
    Role,
)
from kubeadm_registry.agent.netlink import Addresses, Connections, End, Unsupported
from kubeadm_registry.agent.notify import notify
from kubeadm_registry.agent.peers import Links
from kubeadm_registry.agent.probes import Probes
from kubeadm_registry.agent.processes import Exits, Processes
from kubeadm_registry.agent.server import Server

FENCE = 1.0  # seconds for one attempt
FENCE_AGAIN = 0.25  # seconds after an attempt that failed
FARE = 3  # goodbyes: one of them should arrive
TRUE, FALSE = "1\n", "0\n"  # what keepalived finds in the files
MOST_FAILURES = 20  # rounds in a row: an agent that cannot decide for a second leaves, and its node counts as unfit


def write(path: Path, text: str) -> None:
    """Make the file *path* hold *text*, whole, readable for all."""
    new = path.with_name(path.name + ".new")
    new.write_text(text, encoding="utf-8")
    new.chmod(0o644)
    new.rename(path)


#: Seconds. A read whose bytes come is not waiting: what a dead process had sent already still arrives.
FLOWING = 0.04


class Daemon:
    """One node's agent. Raises OSError or ValueError at once if a key cannot be read.

    *takes_over*: it goes on for an earlier version of itself, in the same process. What that one held fit stays so,
    until this one knows better: a VIP that moved would break every pull in flight.
    """

    def __init__(self, config: Config, *, takes_over: bool = False) -> None:
        self.config = config
        self.log = Log()
        self.counters = status.Counters()
        self._loop = asyncio.get_running_loop()
        self._settings = config.settings
        key = Path(config.heartbeat_key_file).read_bytes().strip()
        if len(key) < LEAST_KEY:
            raise ValueError(f"{config.heartbeat_key_file}: the key needs at least {LEAST_KEY} bytes")
        self._frontend = Processes(config.frontend.unit)
        self._storage = Processes(config.storage.unit if config.storage is not None else "")
        self._garage = Garage(config, self._failed)
        self._gate = Gate(config.frontend, self._frontend, Path(config.paths.mark))
        self._writer = Writer(config, self._gate, self.changed)
        self._guard = Guard(config.guard, self.changed, self.log, self._failed)
        self._addresses = Addresses()
        self._connections = Connections()
        self._can_destroy: Optional[bool] = None
        self.links = Links(config, key, self.changed)
        self.probes = Probes(
            config, self._frontend, self._storage if config.storage is not None else None, self.changed
        )
        self.proxies = [proxy.Proxy(config, path, self.changed, self._complain) for path in config.proxy.sockets]
        self._server = Server(config, self._page)
        self._epoch = Epoch(Path(config.paths.epoch))
        fit = takes_over and self._was_fit()
        self.memory = Memory(started=clock(), been_good=fit, fit=fit, lease=LeaseMemory(epoch=self._epoch.read()))
        self._reloads = False
        self.decisions: Optional[Decisions] = None
        self._holds_vip = False
        self._fenced = False
        self._stopping = asyncio.Event()
        self._due = False
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._next: dict[str, float] = {}
        self._expires: Optional[float] = None
        self._exits = [
            Exits(self._loop, self._frontend, self.probes.probe_frontend),
            Exits(self._loop, self._storage, self.probes.probe_storage),
        ]
        self._exits += [Exits(self._loop, one.processes, one.ask) for one in self.proxies]

    # ---- the loop -------------------------------------------------------------------------------------------------

    async def run(self) -> bool:
        """Work until ``stop`` is called; then give up what this node has, and say goodbye.

        After ``reload`` nothing is given up, for the caller executes the agent anew: True.
        """
        if not self.memory.fit:
            Path(self.config.paths.fit).unlink(missing_ok=True)
        self._loop.set_exception_handler(self._unexpected)
        self._loop.add_reader(self._addresses.news.fileno(), self._address_news)
        tick = self.config.timings.tick
        due = self._loop.time()
        ready, failures = False, 0
        while not self._stopping.is_set():
            try:
                self.tick()
                failures = 0
            except Exception as error:
                failures += 1
                self._failed("round", f"a round failed: {described(error)}")
                if failures >= MOST_FAILURES:
                    raise
            else:
                ready = notify("WATCHDOG=1" if ready else "READY=1\nWATCHDOG=1") or ready
            due = max(due + tick, self._loop.time())
            try:
                await asyncio.wait_for(self._stopping.wait(), max(0.001, due - self._loop.time()))
            except asyncio.TimeoutError:
                continue
        if not self._reloads:
            await self._leave()
        self._close()
        return self._reloads

    def _was_fit(self) -> bool:
        try:
            return Path(self.config.paths.fit).read_text(encoding="ascii") == TRUE
        except (OSError, ValueError):
            return False

    def _unexpected(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """What went wrong in a callback or task: the agent goes on, since its next round decides anew."""
        error = context.get("exception")
        text = str(context.get("message")) if error is None else described(error)
        self._failed("callback", f"something unexpected failed: {text}")

    def stop(self) -> None:
        """Make ``run`` end."""
        self._stopping.set()

    def reload(self) -> None:
        """Make ``run`` end so that the agent can be executed anew."""
        self._reloads = True
        self._stopping.set()

    def changed(self) -> None:
        """Something certain was learned: decide soon, once, however much it was."""
        if not self._due:
            self._due = True
            self._loop.call_soon(self.step)

    def tick(self) -> None:
        """Decide, ask and send what is due."""
        now = clock()
        self.step()
        self.links.tick(now)
        self.probes.tick(now)
        for one in self.proxies:
            one.tick(now)
        self._guard.tick(now)
        if self._every("exits", 1.0, now):
            self._watch_exits()
        if self._every("second", 1.0, now):
            self._write_state()
            self.log.flush()
            notify(f"STATUS={self._sentence()}")
        if self._every("slow", 10.0, now):
            self._start("slow", self._slow())

    def _every(self, name: str, seconds: float, now: float) -> bool:
        if now < self._next.get(name, 0.0):
            return False
        self._next[name] = now + seconds
        return True

    def _address_news(self) -> None:
        self._addresses.drain()
        self.changed()

    def step(self) -> None:
        """Decide, and do it."""
        self._due = False
        if self._stopping.is_set():
            return
        now = clock()
        before, old = self.memory, self.decisions
        self._holds_vip = all(self._addresses.here(vip) for vip in self.config.vips)
        self.memory, self.decisions = rules.decide(before, self._observe(), now, self._settings)
        self._apply(old, self.decisions, now)
        self._tell(before, self.memory, old, self.decisions)

    def _observe(self) -> Observation:
        probes = self.probes
        return Observation(
            frontend=probes.frontend.answers,
            storage=probes.storage.answers if probes.storage is not None else None,
            storage_whole=probes.storage_whole,
            manifest=probes.manifest.reading if probes.manifest is not None else None,
            blob=probes.blob.reading if probes.blob is not None else None,
            proxies=tuple(one.answered.answers for one in self.proxies),
            proxy_door=probes.door.answers,
            peers={name: link.view for name, link in self.links.links.items()},
            holds_vip=self._holds_vip,
            fenced=self._fenced,
            writable=self._writer.writable,
            wall_ms=int(time.time() * 1000),
            guarded=self._guard.whole,
        )

    # ---- doing ----------------------------------------------------------------------------------------------------

    def _apply(self, old: Optional[Decisions], new: Decisions, now: float) -> None:
        servers = proxy.wanted(new, self.config.name, self._settings.peers)
        for one in self.proxies:
            one.want(servers, new.epoch)
        if old is None or (old.fit, old.alone) != (new.fit, new.alone) or self._every("claim", 1.0, now):
            self._write_claim(new)
        if self.config.writer == "single":
            self._remember()
        self.links.say(new.report)
        frontend = self.config.frontend
        if new.reset_reads:
            self.counters.read_resets += 1
            count = self._end(End(frontend.reads_from), End(frontend.address, frontend.port), quiet=FLOWING)
            self.log("reset-reads", f"{new.reset_reads}: {count} waiting reads were reset so that they go elsewhere")
        if new.reset_rpc:
            rpc = self.config.ports.rpc
            count = self._end(End(port=rpc), End()) + self._end(End(), End(port=rpc))
            self.log("reset-rpc", f"{new.reset_rpc}: {count} connections of its peers were reset", level=4)
        for name, reason, processes in (
            ("frontend", new.kill_frontend, self._frontend),
            ("storage", new.kill_storage, self._storage),
        ):
            if reason:
                self._kill(name, reason, processes)
        for index in new.kill_proxies:
            self._kill(f"proxy-{index + 1}", f"{self.proxies[index].path} is hung", self.proxies[index].processes)
        for name, stuck in new.destroy:
            self._cut(name, stuck)
        if new.connect:
            self.counters.connects += 1
            self._garage.connect()
        if new.compare:
            self.counters.compares += 1
            self.log("compare", "all storages are here again: what one has missed is sent to it")
            self._garage.compare()
        self._apply_writer(new, now)

    def _remember(self) -> None:
        """Keep the term of a vote before anybody hears of the vote."""
        try:
            self._epoch.keep(known(self.memory.lease))
        except OSError as error:
            self._failed("epoch", f"cannot keep the epoch: {error}")

    def _apply_writer(self, new: Decisions, now: float) -> None:
        """Follow the role: end what could write, or let the frontend write, also after it was restarted."""
        if not new.fence:
            self._fenced = False
        elif not self._fenced:
            self._start("fence", self._fence())
        if not new.writing:
            self._writer.reset()
            return
        try:
            self._writer.tick(now, self.memory.lease.role is Role.WRITER)
        except OSError as error:
            self._failed("writing", f"cannot give the frontend its writing configuration: {error}")

    def _start(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        running = self._tasks.get(name)
        if running is not None and not running.done():
            work.close()
            return
        self._tasks[name] = self._loop.create_task(work)

    def _failed(self, kind: str, text: str) -> None:
        self.counters.errors += 1
        self.log(kind, text, level=4)

    def _complain(self, kind: str, text: str) -> None:
        self._failed(kind, text)

    def _end(
        self,
        source: End,
        destination: End,
        *,
        ports: frozenset[int] = frozenset(),
        stuck: bool = False,
        quiet: float = 0.0,
    ) -> int:
        try:
            count = self._connections.end_all(source, destination, ports=ports, stuck=stuck, quiet=quiet)
        except Unsupported as error:
            if self._can_destroy is not False:
                self._failed("destroy", f"this kernel does not let the agent end connections ({error})")
            self._can_destroy = False
            return 0
        except OSError as error:
            self._failed("destroy", f"cannot end connections: {error}")
            return 0
        if count:
            self._can_destroy = True
        self.counters.connections_ended += count
        return count

    def _cut(self, name: str, stuck: bool) -> None:
        """End the connections to and from a peer on our own ports: those of others on this host are not ours to end."""
        ports = self.config.ports
        ours = frozenset({ports.rpc, ports.internal, ports.metrics})
        link = self.links.links[name]
        count = self._end(End(), End(link.peer.address), ports=ours, stuck=stuck)
        if self.memory.peers[name].presence is Presence.SILENT:
            link.inbox.mute()
        if not stuck or count:
            what = "stuck connections" if stuck else "connections"
            self.log(f"cut-{name}", f"{name} is {self.memory.peers[name].presence.value}: ended {count} {what} to it")

    def _kill(self, name: str, reason: str, processes: Processes) -> None:
        try:
            hit = processes.kill()
        except OSError as error:
            self._failed(f"kill-{name}", f"{reason}, and it cannot be killed: {error}")
            return
        self.counters.kills[name] = self.counters.kills.get(name, 0) + 1
        self.log(f"kill-{name}", f"{reason}: killed {', '.join(map(str, hit)) or 'nothing, no process found'}", level=4)

    async def _fence(self) -> None:
        """Shut the gate in every HAProxy, then end the frontend that could write. The second is what counts."""
        try:
            await asyncio.gather(*(one.settled(0.1) for one in self.proxies))
            self._fenced = await self._gate.fence(FENCE)
            self.counters.fences += 1
            if not self._fenced:
                self._failed("fence", "the frontend that could write is not gone yet")
        except OSError as error:
            self._failed("fence", f"cannot end the frontend that could write: {error}")
        if self._fenced:
            self.changed()
        else:
            await asyncio.sleep(FENCE_AGAIN)

    def _watch_exits(self) -> None:
        health = [self.memory.frontend.health, self.memory.storage.health]
        health += [one.health for one in self.memory.proxies]
        for one, state in zip(self._exits, health):
            if state is Health.OK:
                one.look()

    # ---- telling --------------------------------------------------------------------------------------------------

    def _write_claim(self, new: Decisions) -> None:
        """What keepalived goes by."""
        self._write_flag(self.config.paths.fit, new.fit)
        self._write_flag(self.config.paths.alone, new.alone)

    def _write_flag(self, name: str, value: bool) -> None:
        path, text = Path(name), TRUE if value else FALSE
        try:
            if not path.exists() or path.read_text(encoding="ascii") != text:
                write(path, text)
        except (OSError, ValueError) as error:
            self._failed(path.name, f"cannot write {path}: {error}")
            if not value:
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)  # no file is as good, and needs no room

    def _sentence(self) -> str:
        if self.decisions is None:
            return "starting"
        return status.sentence(self.memory, self.decisions, self.config, self._holds_vip)

    def _state(self) -> dict[str, Any]:
        now = clock()
        heard, skew = status.hearing(self.links, now)
        facts = status.Facts(
            version=__version__,
            instance=self.links.instance,
            wall=time.time(),
            now=now,
            holds_vip=self._holds_vip,
            expires=self._expires,
            can_destroy=self._can_destroy,
            seconds=status.seconds(self.probes),
            corrections=tuple(one.corrections for one in self.proxies),
            heard=heard,
            wall_skew=skew,
            guarded=self._guard.whole,
            guard_losses=self._guard.losses,
        )
        if self.decisions is None:
            return {}
        return status.state(self.memory, self.decisions, self.config, facts, self.counters)

    def _write_state(self) -> None:
        path = Path(self.config.paths.state)
        try:
            write(path, json.dumps(self._state(), indent=1) + "\n")
        except OSError as error:
            self._failed("state", f"cannot write {path}: {error}")

    def _page(self, path: str) -> Optional[tuple[str, bytes]]:
        if path == "/state":
            return "application/json", (json.dumps(self._state(), indent=1) + "\n").encode()
        if path == "/metrics":
            times = os.times()
            return "text/plain; version=0.0.4", status.metrics(self._state(), times.user + times.system).encode()
        return None

    def _tell(self, before: Memory, after: Memory, old: Optional[Decisions], new: Decisions) -> None:
        """Log what has changed, and write the state if people would want to know."""
        if after.resumed != before.resumed:
            self.counters.pauses += 1
            self.log("pause", f"this agent was not run for {after.last - before.last:.1f} s", level=4)
        for name, one in after.peers.items():
            was = before.peers.get(name)
            if was is None or was.presence is not one.presence:
                self.log(f"peer-{name}", f"{name} is {one.presence.value}")
        if before.lease.role is not after.lease.role and self.config.writer == "single":
            self.log(f"role-{after.lease.role}", f"writer: {before.lease.role.value} -> {after.lease.role.value}")
        if old is None or (old.conditions, old.fit, old.report.level, old.report.vip) != (
            new.conditions,
            new.fit,
            new.report.level,
            new.report.vip,
        ):
            self.log("state", self._sentence())
            self._write_state()

    async def _slow(self) -> None:
        """What may take a moment and is not urgent: the metrics port, a renewed certificate."""
        try:
            self._expires = certificate.not_after(Path(self.config.tls.cert)).timestamp()
        except (OSError, ValueError) as error:
            self._failed("certificate", f"{self.config.tls.cert}: {error}")
        try:
            if not self._server.running:
                await self._server.start()
            elif self._server.renew():
                self.log("certificate", "took up the renewed certificate")
        except (OSError, ssl.SSLError) as error:
            self._failed("metrics", f"the metrics port: {error}")

    # ---- leaving --------------------------------------------------------------------------------------------------

    async def _leave(self) -> None:
        """Give up the VIP and the right to write, then say goodbye so that nobody takes this for a dead host."""
        notify("STOPPING=1")
        Path(self.config.paths.fit).unlink(missing_ok=True)
        report = self.decisions.report if self.decisions is not None else Report()
        if self.config.writer == "single":
            shut = {("gate", "open"): False}
            shut.update({("writer", name): False for name in ("local", *self._settings.peers)})
            for one in self.proxies:
                one.want(shut, self.memory.lease.serving)
            if report.role in ASKS:
                await self._fence()
            role = Role.STANDBY if self._fenced or report.role not in ASKS else Role.CLOSING
            report = replace(report, role=role)
        report = replace(report, fit=False, good=False, level=Level.PROCESS, bye=True)
        for _ in range(FARE):
            self.links.say(report)
            self.links.send()
            await asyncio.sleep(0.01)

    def _close(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        for exits in self._exits:
            exits.close()
        self._guard.close()
        for one in self.proxies:
            one.close()
        self.probes.close()
        self.links.close()
        self._server.close()
        self._loop.remove_reader(self._addresses.news.fileno())
        self._addresses.close()
        self._connections.close()
