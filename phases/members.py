"""The members: the list that the agents vote by, and the steps by which nodes come to it and leave it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from kubeadm_registry import members, paths
from kubeadm_registry.agent import promised
from kubeadm_registry.agent.formats import Newer
from kubeadm_registry.cluster import Cluster, arriving, holder_last, retiring, stayer
from kubeadm_registry.components import agent
from kubeadm_registry.components import network as rules
from kubeadm_registry.components.services import backend, frontend
from kubeadm_registry.engine.changes import Absent, File, Running, Steps, Wait
from kubeadm_registry.engine.phase import Phase
from kubeadm_registry.phases import backend as storage
from kubeadm_registry.phases import network, reset
from kubeadm_registry.transport.host import Host


def on_retiring(phase: Phase) -> Phase:
    """*phase* on the hosts that leave, with its checks there."""
    checks = tuple(replace(check, on=retiring) for check in phase.checks)
    return replace(phase, on=retiring, checks=checks)


def store(cluster: Cluster, host: Host) -> Steps:
    """Write down the list."""
    yield File(members.PATH, cluster.members.render())
    # The copy that a reset left in the data directory is no longer needed.
    yield Absent(members.kept_path(cluster.spec.data_directory))


def admit(cluster: Cluster, host: Host) -> Steps:
    """Let nodes in again that come at an address where one had left: their storage is to be reached first."""
    content = host.read(paths.GUARD)
    if content is None:
        return
    addresses = {cluster.node(one).address for one in arriving(cluster)}
    guard = File(paths.GUARD, rules.admitting(content, addresses))
    yield guard
    yield Running(rules.GUARD_UNIT, (guard,), reloads=(paths.GUARD,))


def readmitting(cluster: Cluster) -> Sequence[Host]:
    """The hosts that keep out what comes now: all that stay, if it left before."""
    new = arriving(cluster)
    kept_out = set(cluster.change.former) if cluster.change is not None else set()
    if not kept_out & {cluster.node(host).address for host in new}:
        return []
    return [host for host in cluster.hosts if host not in new]


def move(cluster: Cluster, host: Host) -> Steps:
    """Change the storage's layout."""
    yield from backend(cluster.spec).move(cluster, host)


def copied(cluster: Cluster, host: Host) -> Steps:
    """Wait for the copies."""
    yield from backend(cluster.spec).copied(cluster, host)


@dataclass(frozen=True, slots=True)
class _Stored:
    """Says None once the agent of a host has promised on its disk to vote by this list, and by no earlier one."""

    cluster: Cluster

    def __call__(self, host: Host) -> str | None:
        content = host.read(agent.hardstate(self.cluster)) or b""
        records = [content[at : at + promised.RECORD] for at in range(0, len(content), promised.RECORD)]
        wanted = self.cluster.members.generation
        try:
            found = [one for record in records if (one := promised.decode(record)) is not None]
        except Newer as error:
            return str(error)
        if any(int(one.values.get("generation", 0)) >= wanted for one in found):
            return None
        return f"its agent has not stored generation {wanted} yet"


def _may_settle(cluster: Cluster) -> bool:
    """Whether a change is under way, and more than half of the list before takes part; else a later init settles it."""
    before = cluster.members.before
    return bool(before) and not members.outvoted(before, [host.name for host in cluster.hosts])


def stored(cluster: Cluster, host: Host) -> Steps:
    """Wait until this node's agent is bound by the new list."""
    if _may_settle(cluster):
        yield Wait("the agent has stored the new list of members", _Stored(cluster), timeout=30)


def settle(cluster: Cluster, host: Host) -> Steps:
    """Let the new list decide alone: more than half of the one before have promised not to go back to it."""
    if not _may_settle(cluster):
        return
    after = replace(cluster, recorded=cluster.members.settle())
    yield from store(after, host)
    yield from agent.install(after, host, frontend(after.spec), backend(after.spec))


ARRIVE = Phase(
    "arrive",
    "Install the storage on new nodes",
    phases=(
        Phase("admit", "Let them in again where they had left before", admit, on=readmitting),
        replace(network.NETWORK, on=arriving),
        Phase("storage", "Install and start the storage there", storage.install, on=arriving),
    ),
)
MOVE = Phase(
    "move",
    "Copy the data to the nodes that are to have it",
    phases=(
        Phase("layout", "Give every member its place in the storage", move, on=stayer),
        Phase("copies", "Wait until every member has its copies", copied, on=stayer),
    ),
)
UNINSTALL = Phase("uninstall", "Uninstall nodes that leave", phases=tuple(map(on_retiring, reset.RESET_PHASES)))
MEMBERS = Phase("members", "Write down the list of members", store)
SETTLE = Phase(
    "settle",
    "Let the new list of members decide alone",
    phases=(
        Phase("stored", "Wait until every agent has stored the new list", stored),
        Phase("agents", "Give the agents the new list alone", settle, on=holder_last, one_at_a_time=True),
    ),
)
