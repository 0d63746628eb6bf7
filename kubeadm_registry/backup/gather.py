"""From a registry that runs to what a backup of it holds."""

from __future__ import annotations

from collections.abc import Mapping

from kubeadm_registry.backup.contents import Contents, Image, Member, Pin, Version
from kubeadm_registry.cluster import Cluster
from kubeadm_registry.components.services import existing, frontend
from kubeadm_registry.images import graph, inventory
from kubeadm_registry.images.absence import between_canaries
from kubeadm_registry.images.names import Place
from kubeadm_registry.images.pool import Connect, each
from kubeadm_registry.oci import descriptors as oci
from kubeadm_registry.registry import retry
from kubeadm_registry.transport.host import side_by_side
from kubeadm_registry.upkeep import store


def gather(cluster: Cluster, cluster_file: str, connect: Connect | None) -> tuple[Contents, Mapping[Place, str]]:
    """What a backup of *cluster* holds, and which images it cannot list, with the reason. *cluster_file* is the text of
    its file.

    *connect* leads to the registry, for its images and pins; None: it is not asked. Raises RegistryError, NotYetKnown,
    and Error (StandingDamaged).
    """
    images, lost = (None, dict[Place, str]()) if connect is None else _images(cluster, connect)
    contents = Contents(
        cluster.secrets.found,
        cluster_file,
        _members(cluster),
        tuple(Version(name, one.version, one.digest) for name, one in sorted(cluster.programs.items())),
        images,
        () if connect is None else _pins(connect, cluster.secrets.retention_key),
        cluster.recorded,
    )
    return contents, lost


def _members(cluster: Cluster) -> tuple[Member, ...]:
    """The nodes with the addresses by which the storage knows them, or, before it is there, those of the file."""
    known = next((made.members for made in side_by_side(existing, cluster.hosts) if made is not None), {})
    nodes = [(node, cluster.secrets.node_id(node.name)) for node in cluster.spec.nodes]
    return tuple(Member(node.name, known.get(identity, node.address), identity) for node, identity in nodes)


def _images(cluster: Cluster, connect: Connect) -> tuple[tuple[Image, ...], dict[Place, str]]:
    """Each tag with its digest; and why a tag has none, or a repository no list of tags. Raises RegistryError, also if
    any may only be out of reach."""
    found = _look(cluster, connect)
    if not all(isinstance(one, oci.Descriptor) for one in found.values()):
        # Again: until the canary image was found, all may have been out of reach; and some were deleted meanwhile.
        with connect() as registry, between_canaries(registry, inventory.PATIENCE):
            found = _look(cluster, connect)
    read = {at: one.digest for at, one in found.items() if isinstance(one, oci.Descriptor)}
    lost = {at: one or "its manifest is lost" for at, one in found.items() if not isinstance(one, oci.Descriptor)}
    return tuple(Image(at.repository, at.reference, digest) for at, digest in read.items()), lost


def _look(cluster: Cluster, connect: Connect) -> dict[Place, oci.Descriptor | str | None]:
    places, unlisted = inventory.all_places(connect, frontend(cluster.spec).records)
    found = dict(each(connect, graph.Reader(inventory.PATIENCE).descriptor, places))
    return {**found, **unlisted}


def _pins(connect: Connect, key: str) -> tuple[Pin, ...]:
    with connect() as registry:
        standing = retry(lambda: store.read_standing(registry, key), store.PATIENCE)
    return tuple(Pin(one.name, one.reason, one.since, one.until) for one in standing.pins)
