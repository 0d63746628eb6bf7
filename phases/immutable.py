"""Values that cannot be changed once a registry stores images: reported before anything is changed, with a remedy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from kubeadm_registry import pki
from kubeadm_registry.cluster import Cluster, leader, read_members
from kubeadm_registry.components.existing import Existing
from kubeadm_registry.components.services import BACKENDS, existing, formed
from kubeadm_registry.config.immutable import ADDRESS, BACKEND, COPIES, DIRECTORY, MEMBERS, NAME, Immutable
from kubeadm_registry.engine.phase import Check
from kubeadm_registry.errors import Error
from kubeadm_registry.secrets import Secrets
from kubeadm_registry.transport.host import Host, side_by_side


def same_cluster(cluster: Cluster, _: Host) -> Iterator[str]:
    """The file describes the existing registry: values that cannot be changed in place are those of the first init."""
    if not cluster.vault.made:
        return
    secrets = cluster.vault.preview()  # a newer release may want more of them, which init makes later
    found = side_by_side(existing, cluster.hosts)
    made = [one for one in found if one is not None]
    places = [cluster.spec.data_directory if one is None else one.data_directory for one in found]
    if not any(map(formed, cluster.hosts, places)):
        return  # an init that ended before anything could be stored
    yield from _told(NAME, "", pki.cluster_of(secrets.ca_certificate), cluster.config.metadata.name)
    yield from _members(cluster, secrets, made)
    for read in (_addresses, _data, _storage):
        # Servers that agree, as nearly always, are told of once.
        yield from dict.fromkeys(text for one in made for text in read(cluster, secrets, one))


def _members(cluster: Cluster, secrets: Secrets, made: Sequence[Existing]) -> Iterator[str]:
    if cluster.change is not None:
        return  # that is what the run is for
    if cluster.recorded is not None:
        names = set(cluster.recorded.nodes)
    elif made:
        names = {name for one in made for name in _names(secrets, one).values()}
    else:
        # What a reset left with the images names no servers but those that have keys.
        names = set(secrets.node_keys) - set(cluster.vault.missing)
    wanted = {node.name for node in cluster.spec.nodes}
    changes = (("adds", wanted - names), ("omits", names - wanted))
    words = " and ".join(f"{verb} {', '.join(sorted(which))}" for verb, which in changes if which)
    if words:
        made_of, advice = ", ".join(sorted(names)), MEMBERS.advice
        yield f"{MEMBERS.path}: the registry consists of {made_of}, and the file {words}; {MEMBERS.why}; {advice}"


def _names(secrets: Secrets, made: Existing) -> Mapping[str, str]:
    """The name of each member by its id."""
    known = {secrets.node_id(name): name for name in secrets.node_keys}
    return {identity: known.get(identity, f"an unknown node ({identity[:16]})") for identity in made.members}


def _addresses(cluster: Cluster, secrets: Secrets, made: Existing) -> Iterator[str]:
    if cluster.change is not None:
        return
    wanted = {node.name: node.address for node in cluster.spec.nodes}
    for identity, name in _names(secrets, made).items():
        if name in wanted:
            yield from _told(ADDRESS, f" of {name}", made.members[identity], wanted[name])


def _data(cluster: Cluster, _: Secrets, made: Existing) -> Iterator[str]:
    yield from _told(DIRECTORY, "", made.data_directory, cluster.spec.data_directory)


def _storage(cluster: Cluster, _: Secrets, made: Existing) -> Iterator[str]:
    yield from _told(BACKEND, "", made.backend, cluster.spec.backend.type)
    wanted = BACKENDS[made.backend].copies(len(cluster.spec.nodes))
    if made.copies != wanted:
        yield f"{COPIES.path} is {made.copies}, and the file requires {wanted}; {COPIES.why}; {COPIES.advice}"


def _told(what: Immutable, whose: str, made: str | None, wanted: str) -> Iterator[str]:
    if made is not None and made != wanted:
        yield f"{what.path}{whose} is {made} and cannot be changed to {wanted} in place; {what.why}; {what.advice}"


def same_members(cluster: Cluster, _: Host) -> Iterator[str]:
    """No other run has changed the member list since this one read it."""
    there = read_members(cluster.config, cluster.hosts)
    # This run read it before it had the locks: to write it back would undo what the other one did.
    if there is None:
        return
    # A recovery leaves a generation out (access/recovery.py), which another run may have used.
    recovers = cluster.change is not None and cluster.change.lost
    if there.supersedes(cluster.members) or (recovers and there.generation == cluster.members.generation - 1):
        names = ", ".join(sorted(there.nodes))
        yield f"another run has changed the members in the meantime: they are {names} now; run the command again"


def most_lost(bare: int, left: int, nodes: int) -> bool:
    """Whether half of the *nodes* or more are *bare*, and others are *left*: these may lack what only those had."""
    return left > 0 and 2 * bare >= nodes


def nodes_lost(cluster: Cluster, _: Host) -> Iterator[str]:
    """Fewer than half of the nodes have lost all that they had; else `recover` is what fills them again."""
    if cluster.change is not None and not cluster.change.nobody:
        return
    try:
        installed = {host.name for host, made in zip(cluster.hosts, side_by_side(existing, cluster.hosts), strict=True)
                     if made is not None}  # fmt: skip
    except Error:
        return  # SameCluster says why
    stores = {host.name for host in cluster.hosts if formed(host, cluster.spec.data_directory)}
    bare = [host.name for host in cluster.hosts if host.name not in installed | stores]
    left = sorted(installed & stores)
    if most_lost(len(bare), len(left), len(cluster.spec.nodes)):
        yield (
            f"{', '.join(bare)} lost everything, and {', '.join(left)} may lack images that only they had; run "
            "`recover`, which restores these from bundles and names the others"
        )


LOST = Check("NodesLost", nodes_lost, on=leader)
OF_MEMBERS = (
    Check("SameCluster", same_cluster, on=leader, mandatory=True),
    Check("SameMembers", same_members, on=leader, mandatory=True),
)
"""For each phase that gives nodes what follows from the list of members: an old list would fence and outvote some."""
