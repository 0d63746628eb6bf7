"""What the registry lacks after nodes were lost, and which of that bundles bring back."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from kubeadm_registry.access import presence
from kubeadm_registry.access.loading import Given
from kubeadm_registry.cluster import Cluster
from kubeadm_registry.components import health, s3
from kubeadm_registry.components.services import backend, frontend
from kubeadm_registry.errors import Error, RegistryError
from kubeadm_registry.images import check, delete, graph, inventory, seeded
from kubeadm_registry.images import seed as seeding
from kubeadm_registry.images.absence import between_canaries
from kubeadm_registry.images.names import OURS, REFERRERS_TAG, Place
from kubeadm_registry.images.pool import WORKERS, Connect, each
from kubeadm_registry.images.tombstone import TOMBSTONE_DIGEST
from kubeadm_registry.oci import descriptors as oci
from kubeadm_registry.printable import counted
from kubeadm_registry.registry import Api
from kubeadm_registry.upkeep import signed as retention

#: Seconds that the nodes have to tell each other what objects there are.
COMPARED_WITHIN = 300.0
NAMES_LOST = "the storage has lost the list of its tags; push again what is not listed here"
#: The same for repositories of our own.
RECORDS_LOST = {
    retention.REPOSITORY: "the storage has lost what retention knew: pins, approvals, clusters, the trash",
    seeded.REPOSITORY: "the storage has lost what bundles have brought; seed them again",
}


@dataclass(frozen=True, slots=True)
class Examined:
    """Every image that is known of: *whole*, the digest of each that is complete; *lacking*, why each other is not."""

    whole: Mapping[Place, str]
    lacking: Mapping[Place, str]
    known: Mapping[Place, str]
    """The digests of those among *lacking* whose manifest can be read."""
    broken: frozenset[str] = frozenset()
    """The keys of all objects in the bucket of which the storage has lost a part."""
    nameless: frozenset[Place] = frozenset()
    """The repositories in which nothing can be found, and to which nothing can be pushed, until these are gone."""
    tagged: frozenset[Place] = frozenset()
    """Those that the registry lists, also if it cannot read them."""

    @property
    def count(self) -> int:
        """How many images there are, or should be."""
        return len(self.whole) + len(self.lacking)


def examine(cluster: Cluster, connect: Connect, wanted: Iterable[Place] = ()) -> Examined:
    """Look for each tag, and for each image that is *wanted* besides: is all of it there, and can it be read?

    By the registry, which reads every manifest and the last byte of every blob, and by the storage: whether each block
    of each object in the bucket is on the disk of a node. Raises RegistryError, Error (StorageUnreadable).
    """
    places, lacking = _places(connect)
    wanted = list(wanted)
    found, missing = check.find(connect, list(dict.fromkeys([*places, *wanted])))
    # A deletion that was broken off leaves tags that mean this: nobody misses them who does not want them back.
    going = {item.name for item in found if item.root.digest == TOMBSTONE_DIGEST}
    items = [item for item in found if item.name not in going]
    missing |= dict.fromkeys(going, "is not in the registry")
    places = [place for place in places if str(place) not in going]
    broken = _broken(cluster)
    nameless = _nameless(cluster, broken)
    lacking |= {place: RECORDS_LOST.get(place.repository, NAMES_LOST) for place in nameless}
    of = {item.name: Place(item.repository, item.reference) for item in items}
    digests = {of[item.name]: item.root.digest for item in items}
    lacking |= {place: why for place in [*places, *wanted] if (why := missing.get(str(place))) is not None}
    for item in items:
        if parts := broken.intersection(presence.keys_of(cluster, item)):
            lacking[of[item.name]] = f"the storage has lost a part of {counted(len(parts), 'blob')}"
    readable = [item for item in items if of[item.name] not in lacking]
    lacking |= {of[name]: why for name, why in seeding.prove(connect, readable, WORKERS).items()}
    whole = {place: digest for place, digest in digests.items() if place not in lacking}
    known = {place: digest for place, digest in digests.items() if place in lacking}
    return Examined(whole, lacking, known, broken, nameless, frozenset(places))


def _broken(cluster: Cluster) -> frozenset[str]:
    # Two nodes that have come just now answer for all three until they have been sent what the third one knows.
    until = time.monotonic() + COMPARED_WITHIN
    while told := health.uncompared(health.reports(cluster)):
        if time.monotonic() > until:
            raise Error(
                "; ".join(told), code="StorageUnreadable", hint="see `kubeadm-registry status`, then run it again"
            )
        time.sleep(health.APART)
    region = backend(cluster.spec).REGION
    return presence.broken(cluster, [one.key for one in s3.objects(cluster, cluster.hosts[0], region, "")])


def _nameless(cluster: Cluster, broken: frozenset[str]) -> frozenset[Place]:
    """The repositories of which something is *broken* without which they cannot be read: by its key, for the registry
    may not list them."""
    of = frontend(cluster.spec).records
    found = {key.rpartition("/")[0] for key in broken}
    named = {one for one in found if one in RECORDS_LOST or not one.startswith(OURS)}
    return frozenset(Place(repository) for repository in named if not broken.isdisjoint(of(repository)))


def _places(connect: Connect) -> tuple[list[Place], dict[Place, str]]:
    """Each tag of every repository but our own, without lists of referrers; and the repositories that tell none."""

    def ask(registry: Api, repository: str) -> list[str] | str:
        try:
            return inventory.tags_of(registry, repository)
        except RegistryError as error:
            return error.message

    with connect() as registry:
        repositories = [one for one in inventory.repositories(registry) if not one.startswith(OURS)]
    places: list[Place] = []
    silent: dict[Place, str] = {}
    for repository, tags in each(connect, ask, repositories):
        if isinstance(tags, str):
            silent[Place(repository)] = tags
        else:
            places += [Place(repository, tag) for tag in tags if not REFERRERS_TAG.fullmatch(tag)]
    return places, silent


def brought_back(examined: Examined, bundles: Sequence[Given]) -> list[Given]:
    """*bundles*, of which all images were *examined*, with those alone that are lacking; the newest bundle has them.

    A tag that is whole stays what it is, whatever a bundle has under it; and so does one whose manifest can be read and
    is another one.
    """
    left: list[Given] = []
    taken: set[Place] = set()
    for one in reversed(bundles):
        items = []
        for item in one.items:
            place = Place(item.repository, item.reference)
            same = examined.known.get(place, item.root.digest) == item.root.digest
            if place in examined.lacking and place not in taken and same:
                items.append(item)
                taken.add(place)
        left.append(replace(one, items=tuple(items)))
    return left[::-1]


def loadable(connect: Connect, examined: Examined, bundles: Sequence[Given]) -> list[Given]:
    """*bundles*, which ``brought_back`` told, without images in whose place another one can be read by now: what was
    out of reach when it was *examined* is not lost.

    The tags of indexes that are lost are deleted. zot looks into the index in whose place another one comes, for what
    goes with it, and answers 400 where it cannot (UpdateIndexWithPrunedImageManifests, pkg/storage/common). Raises
    RegistryError, a temporary one while anything may be out of reach.
    """
    items = {Place(item.repository, item.reference): item for one in bundles for item in one.items}
    asked = items.keys() - examined.known.keys()
    if not asked:
        return list(bundles)
    reader = graph.Reader(inventory.PATIENCE)
    with connect() as registry:
        with between_canaries(registry, inventory.PATIENCE):
            there = dict(each(connect, reader.descriptor, sorted(asked, key=str)))
        for place, found in there.items():
            if found is None and place in examined.tagged and items[place].root.media_type in oci.INDEXES:
                delete.forget(registry, place)
    others = {
        place
        for place, found in there.items()
        if isinstance(found, oci.Descriptor) and found.digest not in (items[place].root.digest, TOMBSTONE_DIGEST)
    }
    return [
        replace(one, items=tuple(item for item in one.items if Place(item.repository, item.reference) not in others))
        for one in bundles
    ]
