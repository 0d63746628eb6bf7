"""The node agent, and what it owes to the one writer while agents begin anew.

An agent that begins has forgotten its vote, gives none for some seconds, and holds no lease. Where only one node may
write (zot), that ends the writer with all that is in flight. So where it would be lost anyway, it ends by plan: what is
in flight comes to its end, and new writes wait until the agents have begun anew.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from kubeadm_registry.agent.timings import Timings
from kubeadm_registry.cluster import Cluster, holder_last
from kubeadm_registry.components import agent
from kubeadm_registry.components.services import backend, frontend
from kubeadm_registry.engine.changes import Running, Steps, wait
from kubeadm_registry.engine.phase import Check, Phase
from kubeadm_registry.errors import CommandTimeout, Error
from kubeadm_registry.phases.immutable import OF_MEMBERS
from kubeadm_registry.phases.pausing import WritesGoOn, WritesPause, agents, askable, writer_of
from kubeadm_registry.phases.records import RECORDS
from kubeadm_registry.transport.host import Host

#: Seconds after its start from which an agent votes, and in which the others should all do so again.
VOTES, VOTERS = Timings().lease + 0.5, 10.0


def install(cluster: Cluster, host: Host) -> Steps:
    """Install the agent. With zot, writes pause first if the restart of an agent would end the writer."""
    single = frontend(cluster.spec).SINGLE_WRITER
    if single:
        yield VotersBack(cluster)
        yield WritesPause(cluster, partial(_ending, cluster))
    yield from _install(cluster, host)
    if single:
        yield WritesGoOn(cluster, partial(_loses, cluster))


def _install(cluster: Cluster, host: Host) -> Steps:
    return agent.install(cluster, host, frontend(cluster.spec), backend(cluster.spec))


def begins_anew(cluster: Cluster, host: Host) -> bool:
    """Whether the agent of *host* is about to start or restart."""
    units = (change for change in _install(cluster, host) if isinstance(change, Running))
    return any(agent.MADE_OF & set(unit.stale(host)) for unit in units)


@dataclass
class VotersBack:
    """All other agents vote, so that the writer keeps its majority while this agent restarts."""

    cluster: Cluster
    title = "wait until the other agents vote"
    _waited: bool = False

    def diff(self, host: Host) -> str | None:
        """Which agents do not vote yet, if this one is about to restart."""
        return None if self._waited or not begins_anew(self.cluster, host) else self._missing(host)

    def apply(self, host: Host) -> None:
        """Wait, but not for ever: an agent that restarts repeatedly must not block the repair of this one."""
        self._waited = True
        with suppress(CommandTimeout):
            wait(host, self._missing, what="the other agents vote", timeout=VOTERS)

    def _missing(self, host: Host) -> str | None:
        said = list(agents(self.cluster))
        new = [one.name for one, state in said if one.name != host.name and _young(state)]
        return f"{', '.join(new)} began a moment ago" if new and writer_of(said) is not None else None


def _young(state: Mapping[str, Any]) -> bool:
    return float(state.get("uptime", VOTES)) < VOTES


def _ending(cluster: Cluster, host: Host) -> Host | None:
    """The writer, if it loses the lease when the agent of *host* restarts, and can be asked to yield it before."""
    found = askable(cluster) if begins_anew(cluster, host) else None
    if found is None:
        return None
    at, state = found
    generation = (state.get("members") or {}).get("generation", 0)
    if cluster.members.generation > generation:  # whoever gets the later list first, the writer ends by it
        first = next((one for one in holder_last(cluster) if begins_anew(cluster, one)), None)
        return at if first is not None and first.name == host.name else None
    return at if at.name == host.name else None


def _loses(cluster: Cluster, host: Host) -> bool:
    """Whether *host* is the writer and its agent is about to restart."""
    found = askable(cluster) if begins_anew(cluster, host) else None
    return found is not None and found[0].name == host.name


def has_python(cluster: Cluster, host: Host) -> Iterator[str]:
    """The node or the bundle has a Python that can run the node agent."""
    try:
        if cluster.programs:  # else the checks alone are asked for, without a bundle
            agent.python(cluster, host)
    except Error as error:
        yield error.advice


# An agent that restarts gives up the virtual IP.
AGENT = Phase(
    "agent",
    "Install and start the node agent",
    install,
    on=holder_last,
    checks=(*OF_MEMBERS, RECORDS, Check("Python", has_python, mandatory=True)),
    one_at_a_time=True,
)
