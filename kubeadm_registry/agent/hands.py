"""What the agent does to its host, as ``steering.Hands`` names it: nothing here decides."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Callable, Optional

from kubeadm_registry.agent import haproxy, status
from kubeadm_registry.agent.config import Config
from kubeadm_registry.agent.garage import Garage
from kubeadm_registry.agent.gate import Gate, Writer, acting, fence
from kubeadm_registry.agent.guard import Guard
from kubeadm_registry.agent.hardstate import HardStateFile
from kubeadm_registry.agent.model import Decisions, HardState, Presence, Report
from kubeadm_registry.agent.netlink import Connections, End, Unsupported
from kubeadm_registry.agent.peers import Links
from kubeadm_registry.agent.processes import Processes
from kubeadm_registry.agent.steering import Servers, Steering
from kubeadm_registry.agent.timer import Timer

FENCE = 1.0  # seconds for one attempt
FENCE_AGAIN = 0.25  # seconds after an attempt that failed
DISARM = 0.5  # seconds
CLAIM_AGAIN = 1.0  # seconds after which what keepalived goes by is compared with what it should be
TRUE, FALSE = "1\n", "0\n"  # what keepalived finds in the files
#: Seconds. A read whose bytes come is not waiting: what a dead process had sent already still arrives.
FLOWING = 0.04

Log = Callable[..., None]


def write(path: Path, text: str) -> None:
    """Make the file *path* hold *text*, whole, readable for all."""
    new = path.with_name(path.name + ".new")
    new.write_text(text, encoding="utf-8")
    new.chmod(0o644)
    new.rename(path)


class NodeHands:
    """The hands of one node's agent. *changed* asks for a decision soon; *log* takes kind, text and level."""

    def __init__(self, config: Config, links: Links, changed: Callable[[], None], log: Log) -> None:
        self.config = config
        self.counters = status.Counters()
        self.frontend = Processes(config.frontend.unit)
        self.storage = Processes(config.storage.unit if config.storage is not None else "")
        self.links = links
        self.acting = acting(config, self.frontend)
        self.writer = Writer(config, Gate(config.frontend, self.frontend, Path(config.paths.mark)), changed)
        self.proxies = [haproxy.Proxy(config, path, changed, self.failed) for path in config.proxy.sockets]
        self.timer = Timer(config.fence, config.timings.timer, self.failed) if config.fence is not None else None
        self.hard = HardStateFile(Path(config.paths.hardstate), changed, self.failed)
        self.guard = Guard(config.guard, changed, log, self.failed)
        self.can_destroy: Optional[bool] = None
        """Whether the kernel lets the agent end connections; None: not tried yet."""
        self._changed = changed
        self._log = log
        self._loop = asyncio.get_running_loop()
        self.garage = Garage(config, self.failed)
        self._connections = Connections()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._claimed = 0.0
        self._steering: Optional[Steering] = None

    def follow(self, steering: Steering) -> None:
        """Whose hands these are: *steering* is told what came of a fence, and says what is thought of the peers."""
        self._steering = steering

    def failed(self, kind: str, text: str) -> None:
        """Something that the agent could not do."""
        self.counters.errors += 1
        self._log(kind, text, level=4)

    # ---- steering.Hands -------------------------------------------------------------------------------------------

    def ticket(self) -> None:
        """A decision begins."""
        if self.timer is not None:
            self.timer.ticket()

    def renew(self) -> None:
        """Let the kernel's timer run anew."""
        if self.timer is not None:
            self.timer.renew()

    def keep(self, state: HardState, now: float) -> None:
        """See that at least *state* comes to the disk."""
        self.hard.want(state, now)

    def route(self, servers: Servers, epoch: int) -> None:
        """Tell both HAProxy."""
        for one in self.proxies:
            one.want(servers, epoch)

    def claim(self, fit: bool, alone: bool, behind: bool, *, changed: bool) -> None:
        """Write what keepalived goes by, if it is not so."""
        if not changed and self._loop.time() < self._claimed + CLAIM_AGAIN:
            return
        self._claimed = self._loop.time()
        self.write_flag(self.config.paths.fit, fit)
        self.write_flag(self.config.paths.alone, alone)
        self.write_flag(self.config.paths.behind, behind)

    @property
    def writes(self) -> Optional[int]:
        """How many writes the proxies pass on; None: not known."""
        counts = [one.writes for one in self.proxies]
        return None if None in counts else sum(count for count in counts if count is not None)

    def say(self, report: Report) -> None:
        """Say this in every heartbeat from now on."""
        self.links.say(report)

    def mend(self, new: Decisions) -> None:
        """Reset, kill, cut, connect and compare as decided."""
        frontend = self.config.frontend
        if new.reset_reads:
            self.counters.read_resets += 1
            count = self._end(End(frontend.reads_from), End(frontend.address, frontend.port), quiet=FLOWING)
            self._log("reset-reads", f"{new.reset_reads}: {count} waiting reads were reset so that they go elsewhere")
        if new.reset_rpc:
            rpc = self.config.ports.rpc
            count = self._end(End(port=rpc), End()) + self._end(End(), End(port=rpc))
            self._log("reset-rpc", f"{new.reset_rpc}: {count} connections of its peers were reset", level=4)
        for name, reason, processes in (
            ("frontend", new.kill_frontend, self.frontend),
            ("storage", new.kill_storage, self.storage),
        ):
            if reason:
                self._kill(name, reason, processes)
        for index in new.kill_proxies:
            self._kill(f"proxy-{index + 1}", f"{self.proxies[index].path} is hung", self.proxies[index].processes)
        for one in self.proxies:
            one.counts = new.count_writes
        for name, stuck in new.destroy:
            self.cut(name, stuck)
        if new.connect:
            self.counters.connects += 1
            self.garage.connect()
        if new.compare:
            self.counters.compares += 1
            self._log("compare", "all storages are here again: what one has missed is sent to it")
            self.garage.compare()

    def fence(self) -> None:
        """Begin to fence, unless that is going on."""
        self.start("fence", self.fencing())

    def write(self, now: float, *, writer: bool) -> None:
        """Let the frontend write, also after it was restarted."""
        try:
            self.writer.tick(now, writer)
        except OSError as error:
            self.failed("writing", f"cannot give the frontend its writing configuration: {error}")

    def stop_writing(self) -> None:
        """Forget what the frontend said about writes."""
        self.writer.reset()

    # ---- what takes a while ----------------------------------------------------------------------------------------

    def start(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """Do *work* beside the decisions, unless the one before of that *name* is still going on."""
        running = self._tasks.get(name)
        if running is not None and not running.done():
            work.close()
            return
        self._tasks[name] = self._loop.create_task(work)

    async def fencing(self) -> None:
        """Shut the gate in every HAProxy, then end what could act under the lease. The second is what counts.

        Only when a frontend that could write is gone the next one may reach the storage without a timer.
        """
        gone = False
        try:
            await asyncio.gather(*(one.settled(0.1) for one in self.proxies))
            gone = await fence(self.acting, FENCE)
            self.counters.fences += 1
            if not gone:
                self.failed("fence", "what could act under the lease is not gone yet")
            elif self.timer is not None and not await self.timer.disarmed(DISARM):
                self.failed("timer", "the kernel's timer was not disarmed: reads of this node may go elsewhere")
            self._end_writes_of_executor()
        except OSError as error:
            self.failed("fence", f"cannot end what could act under the lease: {error}")
        if gone and self._steering is not None:
            self._steering.fenced = True
            self._changed()
        else:
            await asyncio.sleep(FENCE_AGAIN)

    def _end_writes_of_executor(self) -> None:
        """What HAProxy passed on for it: the kernel keeps what it holds back of that, to send it another time."""
        executor, frontend = self.config.executor, self.config.frontend
        if executor is not None:
            self._end(End(executor.writes_from), End(frontend.address, frontend.port))

    # ---- connections and processes ---------------------------------------------------------------------------------

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
            if self.can_destroy is not False:
                self.failed("destroy", f"this kernel does not let the agent end connections ({error})")
            self.can_destroy = False
            return 0
        except OSError as error:
            self.failed("destroy", f"cannot end connections: {error}")
            return 0
        if count:
            self.can_destroy = True
        self.counters.connections_ended += count
        return count

    def cut(self, name: str, stuck: bool) -> None:
        """End the connections to and from a peer on our own ports: those of others on this host are not ours to end."""
        ports = self.config.ports
        ours = frozenset({ports.rpc, ports.internal, ports.metrics})
        link = self.links.links[name]
        count = self._end(End(), End(link.peer.address), ports=ours, stuck=stuck)
        presence = self._steering.memory.peers[name].presence if self._steering is not None else Presence.UNHEARD
        if presence is Presence.SILENT:
            link.inbox.mute()
        if not stuck or count:
            what = "stuck connections" if stuck else "connections"
            self._log(f"cut-{name}", f"{name} is {presence.value}: ended {count} {what} to it")

    def _kill(self, name: str, reason: str, processes: Processes) -> None:
        try:
            hit = processes.kill()
        except OSError as error:
            self.failed(f"kill-{name}", f"{reason}, and it cannot be killed: {error}")
            return
        self.counters.kills[name] = self.counters.kills.get(name, 0) + 1
        self._log(
            f"kill-{name}", f"{reason}: killed {', '.join(map(str, hit)) or 'nothing, no process found'}", level=4
        )

    def write_flag(self, name: str, value: bool) -> None:
        """Make the file *name* say *value* to keepalived. No file is as good as no, and needs no room."""
        path, text = Path(name), TRUE if value else FALSE
        try:
            if not path.exists() or path.read_text(encoding="ascii") != text:
                write(path, text)
        except (OSError, ValueError) as error:
            self.failed(path.name, f"cannot write {path}: {error}")
            if not value:
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)

    def close(self) -> None:
        """End what is going on and close what is open; nothing is given up by that."""
        for task in self._tasks.values():
            task.cancel()
        self.guard.close()
        for one in self.proxies:
            one.close()
        if self.timer is not None:
            self.timer.close()
        self._connections.close()
