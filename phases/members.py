"""The list of members by which the agents vote, and the steps by which nodes join and leave."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial

from kubeadm_registry import members, paths, secrets
from kubeadm_registry.access.membership import Request
from kubeadm_registry.agent.formats import Newer
from kubeadm_registry.cluster import Cluster, MembersChange, arriving, as_it_is, holder_last, retiring, stayer, stayers
from kubeadm_registry.components import agent, data, health, replacing
from kubeadm_registry.components import network as rules
from kubeadm_registry.components.services import backend, frontend, vip_manager
from kubeadm_registry.containerd.record import ORIGINALS
from kubeadm_registry.engine.changes import Absent, File, NoService, Running, Steps, Wait
from kubeadm_registry.engine.phase import Check, Phase
from kubeadm_registry.errors import Error, NotYetKnown
from kubeadm_registry.phases import backend as storage
from kubeadm_registry.phases import network, reset
from kubeadm_registry.phases.immutable import OF_MEMBERS
from kubeadm_registry.phases.preflight import ROOM
from kubeadm_registry.phases.vip import VipLeaves
from kubeadm_registry.printable import counted
from kubeadm_registry.transport.host import Host

KEPT_OUT = (
    "it is not uninstalled, and the others keep it out: switch it off, or run `leave` for it again when that is fixed"
)


def on_retiring(phase: Phase) -> Phase:
    """*phase* on the hosts that leave, with its checks there. One that fails, perhaps by its disk, counts as dead."""
    checks = tuple(replace(check, on=retiring) for check in phase.checks)
    return replace(phase, on=retiring, checks=checks, gives_up=KEPT_OUT)


def of_node(phase: Phase) -> Phase:
    """*phase* where the host is no mere client node: one that has left may be that since, when the command is repeated.

    A reset that was killed leaves no record of containerd's files where secrets and list are gone.
    """

    def steps(cluster: Cluster, host: Host) -> Steps:
        if host.read(ORIGINALS) is None or any(host.read(path) is not None for path in (secrets.PATH, members.PATH)):
            yield from phase.changes(cluster, host)

    return replace(phase, steps=steps)


def store(cluster: Cluster, host: Host) -> Steps:
    """Store the list on this node."""
    yield File(members.PATH, cluster.members.render())
    # The copy that a reset left in the data directory is no longer needed.
    yield Absent(members.kept_path(cluster.spec.data_directory))


def clear(cluster: Cluster, host: Host) -> Steps:
    """Remove what a joining node stored when it was a member earlier; data of no member is not touched.

    If nobody has uninstalled it, it knows the members of that time, and gets no adverts from the others: as soon as its
    agent has the new list, it would take the virtual IP beside the holder. It is configured anew below.
    """
    if not _has_list(cluster, host):
        yield NoService(vip_manager(cluster.spec).SERVICE.unit)
    if data.owns_storage(cluster, host):
        yield from backend(cluster.spec).clear(cluster, host)


def _has_list(cluster: Cluster, host: Host) -> bool:
    """Whether *host* has the list that this run stores: an interrupted run may have started all that is there."""
    content = host.read(members.PATH)
    return content is not None and members.parse(content).generation >= cluster.members.generation


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
    """The hosts that still exclude a joining node because it left earlier: all that stay."""
    new = arriving(cluster)
    kept_out = set(cluster.change.former) if cluster.change is not None else set()
    if not kept_out & {cluster.node(host).address for host in new}:
        return []
    return [host for host in cluster.hosts if host not in new]


def _places(cluster: Cluster) -> frozenset[str] | None:
    """The names of the nodes that have a role in the storage; None if the storage of no node that stays responds."""
    for host in stayers(cluster):
        with suppress(NotYetKnown):  # one that leaves may be uninstalled already
            return backend(cluster.spec).places(cluster, host)
    return None


def healthy(cluster: Cluster, _: Host) -> Iterator[str]:
    """Every node that stays is healthy and has its copies: once data moves, the storage waits for each of them."""
    change, known = cluster.change, cluster.members
    if change is None or change.lost or not known.before or set(known.before) == set(known.nodes):
        return
    there = _places(cluster)
    if there is not None and there != set(known.before):
        return  # an earlier run has given the storage its new layout, and this one goes on
    told = health.unready(
        as_it_is(cluster), next(iter((*change.leaving, *change.arriving)), ""), leaves=bool(change.leaving)
    )
    if told is not None:
        yield (
            f"{told}; the nodes that stay must be healthy, and have their copies, before data moves: see "
            "`kubeadm-registry status`, and wait, or fix or `replace` that node first"
        )


def placed(cluster: Cluster, _: Host) -> Iterator[str]:
    """Every node that stays has its place in the storage: an interrupted run is not taking it out."""
    if cluster.change is None or cluster.change.lost:
        return
    known = cluster.members
    before, after = set(known.before or known.nodes), set(known.nodes)
    there = _places(cluster)
    if there is None:
        return
    # It has given its data away and may be uninstalled. What it still stores is out of date: it comes back as a new
    # node, which it is once it has left the list of members.
    for name in sorted((before & after) - there) if there else ():
        begun = Request(joins=min(there - before, default=""), leaves=name)
        yield (
            f"{name} is leaving: an earlier run has moved its data to the others; first complete it: `{begun.words}`"
            f"{_with_the_lost(cluster.change, there)}"
        )


def _with_the_lost(change: MembersChange, there: frozenset[str]) -> str:
    """How that is done while a node is lost that has a place in the storage, which waits for it; empty if none is."""
    lost = sorted(change.leaving.keys() & there - {host.name for host in change.retiring})
    if not lost:
        return ""
    return (
        f", for which {', '.join(lost)} must be back; if it is lost for good, put a bare host in its place, under its "
        "name and address, and first run `init`, which installs the storage there and ends with LayoutDiffers"
    )


def withdraw(cluster: Cluster, host: Host) -> Steps:
    """Stop serving reads here, also after a reboot: soon the storage of this node reports that images do not exist.

    Garage looks up keys and buckets in its own tables only, and a node gives these away when the last layout has ended
    that had it (garage_model/helper/bucket.rs, ``resolve_bucket_fast``; garage_table/sync.rs, ``offload_partition``).
    """
    yield NoService(frontend(cluster.spec).SERVICE.unit)


def move(cluster: Cluster, host: Host) -> Steps:
    """Change the storage's layout."""
    yield from backend(cluster.spec).move(cluster, host)


def copied(cluster: Cluster, host: Host) -> Steps:
    """Wait for the copies. Where no node comes or goes, one of them may not have its storage yet."""
    if cluster.change is not None and cluster.change.nobody and cluster.members.settled:
        return
    yield from backend(cluster.spec).copied(cluster, host)


def lost(cluster: Cluster, _: Host) -> Iterator[str]:
    """That blocks were not waited for which no node has. After a recovery each image is examined anyway."""
    if cluster.change is None or cluster.change.lost:
        return
    with suppress(Error):
        if count := max(backend(cluster.spec).lost(cluster).values(), default=0):
            yield (
                f"no node has {counted(count, 'block')} that the storage looks for, so this is not waited for: "
                "run `recover` with the bundles that have the images, which loads them again and names the others"
            )


def _not_bound(cluster: Cluster, host: Host) -> str | None:
    """None once the agent of *host* has promised on its disk to vote by this list, and by no earlier one."""
    wanted = cluster.members.generation
    try:
        found = agent.promises(cluster, host)
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
        yield Wait("the agent has stored the new list of members", partial(_not_bound, cluster), timeout=30)


def settle(cluster: Cluster, host: Host) -> Steps:
    """Drop the previous list: more than half of its members have promised not to return to it."""
    if not _may_settle(cluster):
        return
    after = replace(cluster, recorded=cluster.members.settle())
    yield from store(after, host)
    yield from agent.install(after, host, frontend(after.spec), backend(after.spec))


def give_up(cluster: Cluster, host: Host) -> Steps:
    """Move the virtual IP to another node, after requests in progress are completed."""
    yield VipLeaves(cluster, lambda _: "it leaves the registry")


ARRIVE = Phase(
    "arrive",
    "Install the storage on new nodes",
    phases=(
        # First: the storage of a node that came back may run, and the others keep it out until they admit it.
        Phase("clear", "Remove old data from returning nodes", clear, on=arriving),
        Phase("admit", "Readmit nodes that left earlier", admit, on=readmitting),
        replace(network.NETWORK, on=arriving),
        Phase("storage", "Install and start the storage", storage.install, on=arriving),
    ),
)
VIP_LEAVES = on_retiring(Phase("vip-leaves", "Move the virtual IP off leaving nodes", give_up))
MOVE = Phase(
    "move",
    "Redistribute the data",
    checks=(
        ROOM,
        Check("NodesHealthy", healthy, on=stayer),
        Check("StoragePlaces", placed, on=stayer, mandatory=True),
    ),
    phases=(
        # A node without a place in the layout reads from the others, slowly: it would lose the address unplanned.
        VIP_LEAVES,
        on_retiring(Phase("frontend", "Stop the registry on leaving nodes", withdraw)),
        Phase("layout", "Apply the storage layout", move, on=stayer),
        Phase("copies", "Wait until replication is complete", copied, on=stayer, notices=lost),
    ),
)
UNINSTALL = Phase(
    "uninstall",
    "Uninstall the registry from leaving nodes",
    phases=(
        VIP_LEAVES,
        *(on_retiring(of_node(one) if one in (reset.CONTAINERD, reset.FILES) else one) for one in reset.RESET_PHASES),
    ),
)
MEMBERS = Phase("members", "Store the member list", store, checks=OF_MEMBERS)
FORGET = on_retiring(Phase("forget", "Remove the shared SSH key from nodes that left", replacing.forget))
SETTLE = Phase(
    "settle",
    "Switch to the new member list",
    phases=(
        Phase("stored", "Wait until every agent has stored the new list", stored),
        Phase(
            "agents",
            "Configure the agents with the new list only",
            settle,
            on=holder_last,
            checks=OF_MEMBERS,
            one_at_a_time=True,
        ),
    ),
)
