"""The node agent, and what it owes to the one writer while agents begin anew.

An agent that begins has forgotten its vote, gives none for some seconds, and holds no lease. Where only one node may
write (zot), that ends the writer with all that is in flight. So where it would be lost anyway, it ends by plan: what is
in flight comes to its end, and new writes wait until the agents have begun anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from kubeadm_registry.agent.timings import Timings
from kubeadm_registry.cluster import Cluster, holder_last
from kubeadm_registry.components import agent, handover, health
from kubeadm_registry.components.services import backend, frontend
from kubeadm_registry.engine.changes import Running, Steps, wait
from kubeadm_registry.engine.phase import Phase
from kubeadm_registry.errors import CommandTimeout
from kubeadm_registry.phases.immutable import OF_MEMBERS
from kubeadm_registry.transport.host import Host, side_by_side

#: Seconds that writes in flight have to end, and that the agents have to begin anew after that.
DRAIN, ANEW = 30.0, 30.0
#: Seconds after its start from which an agent votes, and in which the others should all do so again.
VOTES, VOTERS = Timings().lease + 0.5, 10.0
#: Seconds in which a node has the lease again.
WRITES = 15.0


def install(cluster: Cluster, host: Host) -> Steps:
    """Install the agent, which looks after the frontend and the storage."""
    single = frontend(cluster.spec).SINGLE_WRITER
    if single:
        yield VotersBack(cluster)
        yield WritesPause(cluster)
    yield from _install(cluster, host)
    if single:
        yield WritesGoOn(cluster)


def _install(cluster: Cluster, host: Host) -> Steps:
    return agent.install(cluster, host, frontend(cluster.spec), backend(cluster.spec))


def begins_anew(cluster: Cluster, host: Host) -> bool:
    """Whether the agent of *host* is about to start, or to begin anew."""
    units = (change for change in _install(cluster, host) if isinstance(change, Running))
    return any(agent.MADE_OF & set(unit.stale(host)) for unit in units)


def _agents(cluster: Cluster) -> Iterator[tuple[Host, Mapping[str, Any]]]:
    """What the agents say; without those that say nothing new."""
    for host, state in zip(cluster.hosts, side_by_side(health.state, cluster.hosts), strict=True):
        if state is not None:
            yield host, state


def writer(cluster: Cluster) -> tuple[Host, Mapping[str, Any]] | None:
    """The one writer, and what its agent says; None if there is none at this moment."""
    return _writer_of(_agents(cluster))


def _writer_of(agents: Iterable[tuple[Host, Mapping[str, Any]]]) -> tuple[Host, Mapping[str, Any]] | None:
    for host, state in agents:
        said = state.get("writer") or {}
        if said.get("mode") == "single" and said.get("role") == "writer":
            return host, state
    return None


def askable(cluster: Cluster) -> tuple[Host, Mapping[str, Any]] | None:
    """The same, if its agent knows how to yield the lease, which those of earlier releases do not."""
    found = writer(cluster)
    return found if found is not None and "yields" in found[1]["writer"] else None


@dataclass
class VotersBack:
    """All other agents vote, so that the writer keeps its majority while this one does not."""

    cluster: Cluster
    title = "wait until the other agents vote"
    _waited: bool = False

    def diff(self, host: Host) -> str | None:
        """Who does not vote yet, if this agent is about to begin anew."""
        return None if self._waited or not begins_anew(self.cluster, host) else self._missing(host)

    def apply(self, host: Host) -> None:
        """Wait. One that starts again and again must not keep this one from being mended."""
        self._waited = True
        with suppress(CommandTimeout):
            wait(host, self._missing, what="the other agents vote", timeout=VOTERS)

    def _missing(self, host: Host) -> str | None:
        agents = list(_agents(self.cluster))
        new = [one.name for one, state in agents if one.name != host.name and _young(state)]
        return f"{', '.join(new)} began a moment ago" if new and _writer_of(agents) is not None else None


def _young(state: Mapping[str, Any]) -> bool:
    return float(state.get("uptime", VOTES)) < VOTES


@dataclass
class WritesPause:
    """Nothing is written any more when the one writer is about to lose the lease."""

    cluster: Cluster
    title = "pause writes"
    _asked: bool = False

    def diff(self, host: Host) -> str | None:
        """For how long, if that is about to happen."""
        if self._asked or not begins_anew(self.cluster, host) or self._ending(host) is None:
            return None
        return f"no write is in flight, and new ones wait for {DRAIN + ANEW:.0f} s at most"

    def apply(self, host: Host) -> None:
        """Ask the writer, and wait until it has ended. Where that takes too long, it is lost as at any other time."""
        found = self._ending(host)
        self._asked = True
        if found is None:
            return
        handover.ask(found, "", round(DRAIN + ANEW), yields=True)
        try:
            wait(found, _writes, what="no write is in flight", timeout=DRAIN)
        except CommandTimeout:
            handover.withdraw(found)

    def _ending(self, host: Host) -> Host | None:
        """The writer, if it loses the lease when the agent of *host* begins anew, and can be asked to end before."""
        found = askable(self.cluster)
        if found is None:
            return None
        at, state = found
        generation = (state.get("members") or {}).get("generation", 0)
        if self.cluster.members.generation > generation:  # whoever gets the later list first, the writer ends by it
            first = next((one for one in holder_last(self.cluster) if begins_anew(self.cluster, one)), None)
            return at if first is not None and first.name == host.name else None
        return at if at.name == host.name else None


def _writes(host: Host) -> str | None:
    state = health.state(host)
    if state is None:
        return "its agent reports nothing new"
    role, yields = state["writer"]["role"], state["writer"].get("yields")
    return None if yields and role == "standby" else f"its lease is at {role}"


@dataclass(frozen=True, slots=True)
class WritesGoOn:
    """No agent that has begun anew is kept from the lease."""

    cluster: Cluster
    title = "resume writes"

    def diff(self, host: Host) -> str | None:
        """That they wait, or in a dry-run will."""
        asked = handover.asked(host)
        waits = asked is not None and asked.yields
        if not waits and begins_anew(self.cluster, host):
            found = askable(self.cluster)
            waits = found is not None and found[0].name == host.name
        return "new writes no longer wait" if waits else None

    def apply(self, host: Host) -> None:
        """Ask for it no longer, and wait for a writer, which there may be none of while nodes are away."""
        handover.withdraw(host)
        with suppress(CommandTimeout):
            wait(host, lambda _: self._closed(), what="there is a writer", timeout=WRITES)

    def _closed(self) -> str | None:
        return None if writer(self.cluster) is not None else "no node has the lease"


# An agent that restarts gives up the virtual IP.
AGENT = Phase(
    "agent", "Install and start the node agent", install, on=holder_last, checks=OF_MEMBERS, one_at_a_time=True
)
