"""The loop: sees, decides by the rules and does what they say, twenty times a second and at certain news."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import ssl
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Optional

from kubeadm_registry import __version__
from kubeadm_registry.agent import certificate, keys, moves, moving, reserve, status, trend, volume
from kubeadm_registry.agent.clock import clock
from kubeadm_registry.agent.config import Config, ConfigError, load
from kubeadm_registry.agent.document import MOVES_FILE, SPACE_FILE, Data, State, Trend, sealed
from kubeadm_registry.agent.hands import TRUE, NodeHands, write
from kubeadm_registry.agent.hardstate import UNKNOWN
from kubeadm_registry.agent.heartbeat import LEAST_KEY
from kubeadm_registry.agent.inheritance import Inheritance
from kubeadm_registry.agent.kept import KeptList
from kubeadm_registry.agent.log import Log, described
from kubeadm_registry.agent.model import Decisions, HardState, Health, Level, Memory, Observation, PeerView, Role
from kubeadm_registry.agent.netlink import Addresses
from kubeadm_registry.agent.notify import notify
from kubeadm_registry.agent.peers import Links
from kubeadm_registry.agent.probes import Probes
from kubeadm_registry.agent.processes import Exits
from kubeadm_registry.agent.server import Server
from kubeadm_registry.agent.steering import Steering, remembered

FARE = 3  # goodbyes: one of them should arrive
NOTES = 0.3  # seconds that an agent which leaves waits for its notes to be on disk
MOST_FAILURES = 20  # rounds in a row: an agent that cannot decide for a second leaves, and its node counts as unfit


def _content(path: Path) -> str:
    """The digest of what is in *path*; empty if that cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""


def _news(decided: Decisions) -> tuple[object, ...]:
    """What people, and what acts under the lease, want to know at once."""
    said = decided.report
    return decided.conditions, decided.fit, said.level, said.vip, said.role is Role.WRITER


class Daemon:
    """One node's agent. Raises OSError or ValueError at once if a key cannot be read.

    *takes_over*: it goes on for an earlier version of itself, in the same process. What that one held fit stays so,
    until this one knows better: a VIP that moved would break every pull in flight. *program* and *file*, its
    configuration, are what it is made of, as far as that may change.
    """

    def __init__(
        self,
        config: Config,
        *,
        takes_over: bool = False,
        program: Optional[Path] = None,
        file: Optional[Path] = None,
    ) -> None:
        self.config = config
        self.log = Log()
        self._loop = asyncio.get_running_loop()
        self._file = file
        self._made_of = {path: _content(path) for path in (program, file) if path is not None}
        key, others, left = self._keys()
        self.links = Links(config, key, self.changed, others, left)
        self.hands = NodeHands(config, self.links, self.changed, self.log)
        self.counters = self.hands.counters
        self._inheritance = Inheritance(config, self.links, self.log, self.hands.failed)
        storage = self.hands.storage if config.storage is not None else None
        self.probes = Probes(config, self.hands.frontend, storage, self.changed)
        self._addresses = Addresses()
        self._server = Server(config, self._page)
        fit = takes_over and self._was_fit()
        self.steering = Steering(config.settings, self.hands, clock, remembered(clock(), self._kept(), fit=fit))
        self.hands.follow(self.steering)
        self._reloads = False
        self._holds_vip = False
        self._asked = self._told_request = moving.NOTHING
        self._views: dict[str, PeerView] = {}
        self._stopping = asyncio.Event()
        self._due = False
        self._next: dict[str, float] = {}
        self._expires: Optional[float] = None
        self._ca_expires: Optional[float] = None
        self._data: Optional[Data] = None
        self._trend: Optional[Trend] = None
        self._full = False
        own = Path(config.paths.hardstate).parent  # init puts it into the data directory
        self._samples = KeptList(own / SPACE_FILE, trend.FORMAT, trend.KEY, trend.MOST, self.hands.failed)
        self._noted = KeptList(own / MOVES_FILE, moves.FORMAT, moves.KEY, moves.MOST, self.hands.failed)
        for kept in (self._samples, self._noted):
            kept.read()
        self._moves = moves.Moves(config.settings, self._noted.entries)
        self._exits = [
            Exits(self._loop, self.hands.frontend, self.probes.probe_frontend),
            Exits(self._loop, self.hands.storage, self.probes.probe_storage),
        ]
        self._exits += [Exits(self._loop, one.processes, one.ask) for one in self.hands.proxies]

    def _kept(self) -> HardState:
        """What an earlier life left on disk; without that this node serves reads, but gives no vote."""
        if not self.config.settings.leased:
            return HardState()
        try:
            return self.hands.hard.read()
        except (OSError, ValueError) as error:
            self.hands.failed("hardstate", str(error))
            return self.hands.hard.kept

    async def _keep_again(self) -> None:
        """Vote after all, once what could not be read at the start can be: the disk was read-only then, or in trouble.

        That there is no file proves nothing: the disk may have been taken away.
        """
        with contextlib.suppress(OSError, ValueError):  # as was said at the start
            kept = self.hands.hard.take(await self._loop.run_in_executor(None, self.hands.hard.content))
            memory = self.steering.memory
            epoch = max(memory.lease.epoch, kept.epoch)  # before a vote is said, as at the start
            self.steering.memory = replace(memory, lease=replace(memory.lease, epoch=epoch))
            self.log("hardstate", "what this node has promised can be read now, so it votes")

    @property
    def memory(self) -> Memory:
        """What is carried from one decision to the next."""
        return self.steering.memory

    @property
    def decisions(self) -> Optional[Decisions]:
        """The newest decisions; None before the first."""
        return self.steering.decisions

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
                self.hands.failed("round", f"a round failed: {described(error)}")
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
        await self._end_notes()
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
        self.hands.failed("callback", f"something unexpected failed: {text}")

    def stop(self) -> None:
        """Make ``run`` end."""
        self._stopping.set()

    def reload(self) -> None:
        """Use the keys for heartbeats that are there now, and the list of members once it decides alone. If anything
        else has changed, make ``run`` end so that the agent can be executed anew: one that begins gives no vote at
        first, and what holds the lease loses it."""
        changed = {path for path, made in self._made_of.items() if _content(path) != made}
        if self._made_of and changed <= {self._file} and (not changed or self._settled()):
            try:
                key, others, left = self._keys()
            except (OSError, ValueError) as error:
                self.log("keys", f"no other keys are used: {error}", level=3)
            else:
                self.links.use(key, others, left)
            return
        self._reloads = True
        self._stopping.set()

    def _settled(self) -> bool:
        """Whether the configuration is as it was, but for a change of members that has come to its end."""
        if self._file is None:
            return False
        now = _content(self._file)
        try:
            config = load(self._file)
        except (OSError, ConfigError):
            return False
        if config.members_before or replace(config, members_before=self.config.members_before) != self.config:
            return False
        self.config, self.steering.settings, self._made_of[self._file] = config, config.settings, now
        return True

    def _keys(self) -> tuple[bytes, list[bytes], list[bytes]]:
        """The key that makes heartbeats, others that are believed, and those that only nodes which have left have."""
        path = Path(self.config.heartbeat_key_file)
        found, left = keys.parse(path.read_bytes())
        if not found or min(map(len, (*found, *left))) < LEAST_KEY:
            raise ValueError(f"{path}: the key needs at least {LEAST_KEY} bytes")
        return found[0], found[1:], left

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
        for one in self.hands.proxies:
            one.tick(now)
        self.hands.guard.tick(now)
        self._inheritance.tick(now, self._holds_vip)
        if self._every("exits", 1.0, now):
            self._watch_exits()
        if self._every("second", 1.0, now):
            self._write_state()
            self.log.flush()
            notify(f"STATUS={self._sentence()}")
        if self._every("copying", 1.0, now) and self.memory.storage.health is Health.OK:
            self.hands.garage.look(slow=self._reads_are_slow())
        if self._every("slow", 10.0, now):
            self.hands.start("slow", self._slow())
            self.hands.start("space", self._space())
            if self.config.settings.leased and self.hands.hard.kept == UNKNOWN:
                self.hands.start("hardstate", self._keep_again())
            for kept in (self._samples, self._noted):
                kept.flush()
            if self.memory.storage.health is Health.OK:
                self.hands.garage.count()

    def _reads_are_slow(self) -> bool:
        """Whether the storage reads too slowly here, or at a node that is heard."""
        levels = {} if self.decisions is None else self.decisions.levels
        return Level.CHAIN in (self.memory.level, *levels.values())

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
        before, old = self.memory, self.decisions
        self.steering.step(self._observe)
        if self.decisions is not None:
            self._note(self.decisions)
            self._tell(before, self.memory, old, self.decisions)

    def _note(self, decided: Decisions) -> None:
        """Note what of VIP and lease came or left by this decision."""
        for move in self._moves.see(self.memory, decided, self._views, self.memory.last, time.time()):
            self._noted.add(move)
            if move["here"] and move["exact"]:
                self.counters.vip_taken += move["what"] == moves.VIP
                self.counters.lease_taken += move["what"] == moves.LEASE

    def _observe(self) -> Observation:
        probes, hands = self.probes, self.hands
        self._holds_vip = all(self._addresses.here(vip) for vip in self.config.vips)
        self._asked = moving.asked(Path(self.config.paths.move), clock())
        self._views = {name: link.view for name, link in self.links.links.items()}
        return Observation(
            frontend=probes.frontend.answers,
            storage=probes.storage.answers if probes.storage is not None else None,
            storage_whole=probes.storage_whole,
            manifest=probes.manifest.reading if probes.manifest is not None else None,
            blob=probes.blob.reading if probes.blob is not None else None,
            proxies=tuple(one.answered.answers for one in hands.proxies),
            proxy_door=probes.door.answers,
            peers=self._views,
            holds_vip=self._holds_vip,
            fenced=self.steering.fenced,
            writable=hands.writer.writable,
            wall_ms=int(time.time() * 1000),
            guarded=hands.guard.whole,
            kept=hands.hard.kept,
            timer=hands.timer.renewed if hands.timer is not None else None,
            timer_there=hands.timer is not None and hands.timer.there(clock()),
            copying=hands.garage.copying.now,
            moves_to=self._asked.to,
            yields=self._asked.yields,
            writes=hands.writes,
        )

    def _watch_exits(self) -> None:
        health = [self.memory.frontend.health, self.memory.storage.health]
        health += [one.health for one in self.memory.proxies]
        for one, state in zip(self._exits, health):
            if state is Health.OK:
                one.look()

    # ---- telling --------------------------------------------------------------------------------------------------

    def _sentence(self) -> str:
        if self.decisions is None:
            return "starting"
        return status.sentence(self.memory, self.decisions, self.config, self._holds_vip)

    def _state(self) -> Optional[State]:
        """What this agent tells; None before its first decision."""
        now = clock()
        heard, skew = status.hearing(self.links, now)
        facts = status.Facts(
            version=__version__,
            instance=self.links.instance,
            wall=time.time(),
            now=now,
            holds_vip=self._holds_vip,
            asked=self._asked,
            expires=self._expires,
            can_destroy=self.hands.can_destroy,
            seconds=status.seconds(self.probes),
            corrections=tuple(one.corrections for one in self.hands.proxies),
            heard=heard,
            never=status.never(self.links, now),
            wall_skew=skew,
            timer_there=self.hands.timer is not None and self.hands.timer.there(now),
            guarded=self.hands.guard.whole,
            guard_losses=self.hands.guard.losses,
            ca_expires=self._ca_expires,
            data=self._data,
            storage_left=self.hands.garage.copying.left,
            storage_queues=self.hands.garage.queues,
            storage_lost=self.hands.garage.lost.count,
            data_trend=self._trend,
            moves=tuple(map(moves.told, self._noted.entries[-moves.TOLD :])),
        )
        if self.decisions is None:
            return None
        return status.state(self.memory, self.decisions, self.config, facts, self.counters)

    def _write_state(self) -> None:
        path = Path(self.config.paths.state)
        try:
            write(path, self._text())
        except OSError as error:
            self.hands.failed("state", f"cannot write {path}: {error}")

    def _text(self) -> str:
        state = self._state()
        return json.dumps({} if state is None else sealed(state), indent=1) + "\n"

    def _page(self, path: str) -> Optional[tuple[str, bytes]]:
        if path == "/state":
            return "application/json", self._text().encode()
        if path == "/metrics":
            times, state = os.times(), self._state()
            told = "" if state is None else status.metrics(state, times.user + times.system)
            return "text/plain; version=0.0.4", told.encode()
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
        if before.lease.role is not after.lease.role and self.steering.settings.leased:
            self.log(f"role-{after.lease.role}", f"lease: {before.lease.role.value} -> {after.lease.role.value}")
        if self._asked != self._told_request:
            self._told_request = self._asked
            self.log("move", moving.told(self._asked))
            self._write_state()
        if old is None or _news(old) != _news(new):
            self.log("state", self._sentence())
            self._write_state()

    async def _slow(self) -> None:
        """What may take a moment and is not urgent: the metrics port, a renewed certificate."""
        self._expires = self._end_of(self.config.tls.cert, self._expires)
        self._ca_expires = self._end_of(self.config.tls.ca, self._ca_expires)
        try:
            if not self._server.running:
                await self._server.start()
            elif self._server.renew():
                self.log("certificate", "took up the renewed certificate")
        except (OSError, ssl.SSLError) as error:
            self.hands.failed("metrics", f"the metrics port: {error}")

    def _end_of(self, path: str, known: Optional[float]) -> Optional[float]:
        """When the certificate in the file *path* expires, seconds since 1970; *known* if it cannot be read."""
        try:
            return certificate.not_after(Path(path)).timestamp()
        except (OSError, ValueError) as error:
            self.hands.failed(f"certificate-{path}", f"{path}: {error}")
            return known

    async def _space(self) -> None:
        """How full the file system of the data directory is: in a thread, since a disk that hangs answers nothing."""
        folder = Path(self.config.paths.hardstate).parent
        try:
            data = await self._loop.run_in_executor(None, volume.look, folder)
        except OSError as error:
            self.hands.failed("space", f"cannot read how full {folder} is: {error}")
            if self._data is not None:
                self._data["writable"] = False
            return
        self._data, wall = data, time.time()
        self._trend = trend.trend(self._samples.entries, data["free"], wall)
        if trend.due(self._samples.entries, wall):
            self._samples.add(trend.sample(data["free"], wall))
        self._full = reserve.nearly_full(data["free"], data["size"], self._full)
        for one in self.hands.proxies:
            one.reserve(reserve.SECONDS if self._full else 0, time.time())

    # ---- leaving --------------------------------------------------------------------------------------------------

    async def _leave(self) -> None:
        """Give up the VIP and the lease, then say goodbye so that nobody takes this for a dead host."""
        notify("STOPPING=1")
        Path(self.config.paths.fit).unlink(missing_ok=True)
        if self.steering.settings.leased:
            self.steering.shut()
            if self.steering.asks:
                await self.hands.fencing()
        report = self.steering.goodbye()
        for _ in range(FARE):
            self.links.say(report)
            self.links.send()
            await asyncio.sleep(0.01)

    async def _end_notes(self) -> None:
        """Note what this node gives up with its agent; for people, so after all that others wait for.

        Not where it is executed anew: nobody waits for a disk then, and what left is noted by the next life.
        """
        if self._reloads:
            return
        for move in self._moves.end(time.time()):
            self._noted.add(move)
        await self._noted.settle(NOTES)

    def _close(self) -> None:
        for exits in self._exits:
            exits.close()
        self._inheritance.close()
        self.hands.close()
        self.probes.close()
        self.links.close()
        self._server.close()
        self._loop.remove_reader(self._addresses.news.fileno())
        self._addresses.close()
