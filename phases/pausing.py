"""Writes pause before the one writer loses the lease or its registry restarts: what is in flight comes to its end.

Where only one node may write (zot), whatever ends its writer cuts off all uploads and manifests in flight. So it is
asked before: new writes wait in HAProxy, those that have begun end, and then it gives the lease up, and keeps the
virtual IP. What was to be done is done, and it has the lease again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from kubeadm_registry.cluster import Cluster
from kubeadm_registry.components import handover, health
from kubeadm_registry.components.services import frontend
from kubeadm_registry.engine.changes import Running, Steps, unit_state, wait
from kubeadm_registry.errors import CommandTimeout, NotYetKnown
from kubeadm_registry.transport.host import Host, side_by_side

#: Seconds that writes in flight have to end, and that what is to be done may take after that.
DRAIN, DONE = 30.0, 30.0
#: Seconds in which a node has the lease again.
WRITES = 15.0

Ends = Callable[[Host], Host | None]
"""The writer, if it ends by what is about to be done on this host; None: it does not, or cannot be asked."""
Install = Callable[[Cluster, Host], Steps]


def agents(cluster: Cluster) -> Iterator[tuple[Host, Mapping[str, Any]]]:
    """What the agents say; without those that say nothing new."""
    for host, state in zip(cluster.hosts, side_by_side(health.state, cluster.hosts), strict=True):
        if state is not None:
            yield host, state


def writer_of(said: Iterable[tuple[Host, Mapping[str, Any]]]) -> tuple[Host, Mapping[str, Any]] | None:
    """The one writer by what the agents *said*, and what its own said; None if there is none at this moment."""
    for host, state in said:
        there = state.get("writer") or {}
        if there.get("mode") == "single" and there.get("role") == "writer":
            return host, state
    return None


def askable(cluster: Cluster) -> tuple[Host, Mapping[str, Any]] | None:
    """The writer, if its agent knows how to yield the lease, which those of earlier releases do not."""
    found = writer_of(agents(cluster))
    return found if found is not None and "yields" in found[1]["writer"] else None


def while_restarting(cluster: Cluster, host: Host, install: Install) -> Steps:
    """The steps of *install*, and around them a pause, if they restart a unit on the one writer's node."""
    if not frontend(cluster.spec).SINGLE_WRITER:
        yield from install(cluster, host)
        return
    ends = partial(_restarted, cluster, install)
    yield WritesPause(cluster, ends, partial(_may_restart, cluster, install))
    yield from install(cluster, host)
    yield WritesGoOn(cluster, lambda one: ends(one) is not None)


def _restarting(cluster: Cluster, install: Install, host: Host) -> list[Running]:
    units = [change for change in install(cluster, host) if isinstance(change, Running)]
    return [unit for unit in units if unit.verb(host) == "restart"]


def _may_restart(cluster: Cluster, install: Install, host: Host) -> None:
    """Wait for what a restart waits for, which may take longer than writes can wait. Raises CommandTimeout."""
    for unit in _restarting(cluster, install, host):
        if unit.gate is not None:
            with suppress(NotYetKnown):  # it cannot be asked before its files are mended, as what is to be done does
                wait(host, unit.gate, what=f"{unit.unit} may restart", timeout=unit.gate_timeout)


def _restarted(cluster: Cluster, install: Install, host: Host) -> Host | None:
    if not _restarting(cluster, install, host):
        return None
    found = askable(cluster)
    return host if found is not None and found[0].name == host.name else None


@dataclass
class WritesPause:
    """Writes are completed and paused when the single active writer is about to stop. *before* waits until it may."""

    cluster: Cluster
    ends: Ends
    before: Callable[[Host], None] = lambda _: None
    title = "pause writes"
    _asked: bool = False

    def diff(self, host: Host) -> str | None:
        """For how long writes pause, if the writer is about to stop."""
        if self._asked or self.ends(host) is None:
            return None
        return f"no write is in flight, and new ones wait for {DRAIN + DONE:.0f} s at most"

    def apply(self, host: Host) -> None:
        """Ask the writer to yield the lease and wait for it. After a timeout, its writes fail as in any failover."""
        self.before(host)
        found = self.ends(host)
        self._asked = True
        if found is None:
            return
        # Its registry is killed then, and starts again by what systemd knows, which may be what was there before a run
        # that died: it would note files as its own that it was not started with.
        found.run("systemctl", "daemon-reload")
        handover.ask(found, "", round(DRAIN + DONE), yields=True)
        try:
            wait(found, self._writes, what="no write is in flight", timeout=DRAIN)
        except CommandTimeout:
            handover.withdraw(found)

    def _writes(self, host: Host) -> str | None:
        state = health.state(host)
        if state is None:
            return "its agent reports nothing new"
        role, yields = state["writer"]["role"], state["writer"].get("yields")
        if not yields or role != "standby":
            return f"its lease is at {role}"
        # For the same reason no file of it is changed before it runs again.
        unit = frontend(self.cluster.spec).SERVICE.unit
        return None if unit_state(host, unit).active else f"{unit} starts again"


@dataclass(frozen=True, slots=True)
class WritesGoOn:
    """Every node may take the lease again. *paused*: whether writes wait for this host, for a dry-run."""

    cluster: Cluster
    paused: Callable[[Host], bool]
    title = "resume writes"

    def diff(self, host: Host) -> str | None:
        """That they wait, or in a dry-run will."""
        asked = handover.asked(host)
        waits = asked is not None and asked.yields
        return "new writes no longer wait" if waits or self.paused(host) else None

    def apply(self, host: Host) -> None:
        """Ask for it no longer, and wait for a writer, which there may be none of while nodes are away."""
        handover.withdraw(host)
        with suppress(CommandTimeout):
            wait(host, lambda _: self._closed(), what="there is a writer", timeout=WRITES)

    def _closed(self) -> str | None:
        return None if writer_of(agents(self.cluster)) is not None else "no node has the lease"
