"""From a registry that runs to what a backup of it holds."""

from __future__ import annotations

from collections.abc import Mapping

from kubeadm_registry.backup.contents import Contents, Image, Member, Pin, Version
from kubeadm_registry.bundle import Program
from kubeadm_registry.cluster import Cluster
from kubeadm_registry.components.services import existing
from kubeadm_registry.images import inventory
from kubeadm_registry.images.names import Place
from kubeadm_registry.images.pool import Connect, each
from kubeadm_registry.registry import Api, retry
from kubeadm_registry.transport.host import side_by_side
from kubeadm_registry.upkeep import store


def gather(cluster: Cluster, cluster_file: str, programs: Mapping[str, Program], connect: Connect | None) -> Contents:
    """What a backup of *cluster* holds. *cluster_file* is the text of its file, *programs* those on the nodes.

    *connect* leads to the registry, for its images and pins; None: it is not asked. Raises RegistryError, NotYetKnown,
    and Error (StandingDamaged).
    """
    return Contents(
        cluster.secrets.found,
        cluster_file,
        _members(cluster),
        tuple(Version(name, one.version, one.digest) for name, one in sorted(programs.items())),
        None if connect is None else _images(connect),
        () if connect is None else _pins(connect, cluster.secrets.retention_key),
        cluster.recorded,
    )


def _members(cluster: Cluster) -> tuple[Member, ...]:
    """The nodes with the addresses by which the storage knows them, or, before it is there, those of the file."""
    known = next((made.members for made in side_by_side(existing, cluster.hosts) if made is not None), {})
    nodes = [(node, cluster.secrets.node_id(node.name)) for node in cluster.spec.nodes]
    return tuple(Member(node.name, known.get(identity, node.address), identity) for node, identity in nodes)


def _images(connect: Connect) -> tuple[Image, ...]:
    def digest(registry: Api, place: Place) -> str | None:
        return retry(lambda: registry.digest(place.repository, place.reference), inventory.PATIENCE)

    found = each(connect, digest, inventory.places(connect))
    return tuple(Image(place.repository, place.reference, one) for place, one in found if one is not None)


def _pins(connect: Connect, key: str) -> tuple[Pin, ...]:
    with connect() as registry:
        standing = retry(lambda: store.read_standing(registry, key), store.PATIENCE)
    return tuple(Pin(one.name, one.reason, one.since, one.until) for one in standing.pins)
