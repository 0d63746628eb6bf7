"""What cannot be changed once a registry keeps images: found before anything is touched, with what to do instead."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from kubeadm_registry import pki
from kubeadm_registry.cluster import Cluster, leader
from kubeadm_registry.components.existing import Existing
from kubeadm_registry.components.services import BACKENDS, existing, formed
from kubeadm_registry.engine.workflow import Check
from kubeadm_registry.secrets import Secrets
from kubeadm_registry.transport.host import Host, side_by_side

#: Takes the images with it, so it comes last in each remedy.
_ANEW = "`reset --purge-data` with the file as it was, `init` with the new one, and `seed` again"


@dataclass(frozen=True, slots=True)
class Immutable:
    """A value of the cluster file that stays as it was at the first init: why, and how to get another one."""

    path: str
    why: str
    remedy: str


NAME = Immutable("metadata.name", "the certificates of the cluster's authority carry it", _ANEW)
MEMBERS = Immutable("spec.nodes", "each server has its part in the storage, by its name", _ANEW)
ADDRESS = Immutable(
    "spec.nodes[].address", "the other servers' storage connects to it",
    "`reset` with the file as it was (the images stay on the servers), then `init` with the new address",
)  # fmt: skip
DIRECTORY = Immutable(
    "spec.dataDirectory", "the images would be left behind in the old one",
    "`reset` with the file as it was (the images stay on the servers), move what is in the directory to the new one on "
    "every server, then `init` with the new one",
)  # fmt: skip
BACKEND = Immutable("spec.backend.type", "no storage reads what another one wrote", _ANEW)
COPIES = Immutable(
    "the number of copies", "it follows from the number of spec.nodes: one copy on one server, three on more", _ANEW
)
TABLE = (NAME, MEMBERS, ADDRESS, DIRECTORY, BACKEND, COPIES)
"""Everything that this check finds; docs/reference.md shows it."""


def same_cluster(cluster: Cluster, _: Host) -> Iterator[str]:
    """The file describes the registry that is there: what cannot be changed in place is as it was at the first init."""
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
    if made:
        names = {name for one in made for name in _names(secrets, one).values()}
    else:
        # What a reset left with the images names no servers but those that have keys.
        names = set(secrets.node_keys) - set(cluster.vault.missing)
    wanted = {node.name for node in cluster.spec.nodes}
    changes = (("adds", wanted - names), ("leaves out", names - wanted))
    words = " and ".join(f"{verb} {', '.join(sorted(which))}" for verb, which in changes if which)
    if words:
        made_of, advice = ", ".join(sorted(names)), _advice(MEMBERS)
        yield f"{MEMBERS.path}: the registry consists of {made_of}, and the file {words}: {MEMBERS.why}; {advice}"


def _names(secrets: Secrets, made: Existing) -> Mapping[str, str]:
    """The name of each member by its id."""
    known = {secrets.node_id(name): name for name in secrets.node_keys}
    return {identity: known.get(identity, f"an unknown server ({identity[:16]})") for identity in made.members}


def _addresses(cluster: Cluster, secrets: Secrets, made: Existing) -> Iterator[str]:
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
        yield f"{COPIES.path} is {made.copies}, and the file wants {wanted}: {COPIES.why}; {_advice(COPIES)}"


def _told(what: Immutable, whose: str, made: str | None, wanted: str) -> Iterator[str]:
    if made is not None and made != wanted:
        yield f"{what.path}{whose} is {made}, and cannot become {wanted} in place: {what.why}; {_advice(what)}"


def _advice(what: Immutable) -> str:
    return f"put it back as it was, or: {what.remedy}"


SAME_CLUSTER = Check("SameCluster", same_cluster, on=leader)
