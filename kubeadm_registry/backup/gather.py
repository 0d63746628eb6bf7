"""From a registry that runs to what a backup of it holds."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from kubeadm_registry.backup.contents import Contents, Image, Member, Pin, Version
from kubeadm_registry.bundle import Program
from kubeadm_registry.cluster import Cluster
from kubeadm_registry.components.services import existing
from kubeadm_registry.images import graph, inventory
from kubeadm_registry.images.absence import expect_canary
from kubeadm_registry.images.names import Place
from kubeadm_registry.images.pool import Connect, each
from kubeadm_registry.oci import descriptors as oci
from kubeadm_registry.registry import retry
from kubeadm_registry.transport.host import side_by_side
from kubeadm_registry.upkeep import store


def gather(
    cluster: Cluster, cluster_file: str, programs: Mapping[str, Program], connect: Connect | None
) -> tuple[Contents, Mapping[Place, str]]:
    """What a backup of *cluster* holds, and which images it cannot list, with the reason. *cluster_file* is the text of
    its file, *programs* those on the nodes.

    *connect* leads to the registry, for its images and pins; None: it is not asked. Raises RegistryError, NotYetKnown,
    and Error (StandingDamaged).
    """
    images, lost = (None, dict[Place, str]()) if connect is None else _images(connect)
    contents = Contents(
        cluster.secrets.found,
        cluster_file,
        _members(cluster),
        tuple(Version(name, one.version, one.digest) for name, one in sorted(programs.items())),
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


def _images(connect: Connect) -> tuple[tuple[Image, ...], dict[Place, str]]:
    """Each tag with its digest; and why a tag has none. Raises RegistryError, also if any may only be out of reach."""
    reader = graph.Reader(inventory.PATIENCE)
    found = each(connect, reader.descriptor, inventory.places(connect))
    images = [Image(at.repository, at.reference, one.digest) for at, one in found if isinstance(one, oci.Descriptor)]
    lost = {at: one or "its manifest is lost" for at, one in found if not isinstance(one, oci.Descriptor)}
    if lost:
        with connect() as registry:
            retry(partial(expect_canary, registry), inventory.PATIENCE)
        there = set(inventory.places(connect))  # without those that were deleted meanwhile
        lost = {place: why for place, why in lost.items() if place in there}
    return tuple(images), lost


def _pins(connect: Connect, key: str) -> tuple[Pin, ...]:
    with connect() as registry:
        standing = retry(lambda: store.read_standing(registry, key), store.PATIENCE)
    return tuple(Pin(one.name, one.reason, one.since, one.until) for one in standing.pins)
