"""What is in the registry: every tag, with the platforms of its image and what refers to it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kubeadm_registry.images import graph
from kubeadm_registry.images.names import OURS, REFERRERS_TAG, Place
from kubeadm_registry.images.pool import Connect, each
from kubeadm_registry.oci import descriptors as oci
from kubeadm_registry.registry import Api, retry

#: Seconds that one question may be asked again while the registry has no answer.
PATIENCE = 10.0


@dataclass(frozen=True, slots=True)
class Referrer:
    """What refers to the manifest *subject* of an image: a signature, a list of contents, a proof of its making."""

    subject: str
    digest: str
    artifact_type: str
    size: int


@dataclass(frozen=True, slots=True)
class Image:
    """What stands under one tag; *graph* None: it cannot be read, and *flaw* says why."""

    place: Place
    graph: graph.Graph | None
    flaw: str = ""
    referrers: tuple[Referrer, ...] = ()

    @property
    def platforms(self) -> tuple[str, ...]:
        """The platforms of an index whose images are there; none for a single image, which does not say."""
        return tuple(platform for _, platform, there in _children(self.graph) if there) if self.graph else ()

    @property
    def absent(self) -> tuple[str, ...]:
        """The platforms that an index lists and the registry does not have."""
        return tuple(platform for _, platform, there in _children(self.graph) if not there) if self.graph else ()

    def to_dict(self) -> dict[str, Any]:
        """For machines; sizes in bytes."""
        found: dict[str, Any] = {
            "name": str(self.place), "repository": self.place.repository, "tag": self.place.reference,
        }  # fmt: skip
        if self.graph is None:
            return {**found, "problem": self.flaw}
        root = self.graph.root
        return {
            **found,
            "digest": root.digest,
            "mediaType": root.media_type,
            "size": self.graph.size(root),
            "platforms": [
                {"platform": platform, "digest": child.digest, "size": self.graph.size(child), "present": there}
                for child, platform, there in _children(self.graph)
            ],
            "referrers": [
                {"subject": one.subject, "digest": one.digest, "artifactType": one.artifact_type, "size": one.size}
                for one in self.referrers
            ],
        }


def places(connect: Connect, prefix: str = "", *, everything: bool = False) -> list[Place]:
    """Every tag of every repository that is, or begins with, *prefix*; sorted. Raises RegistryError.

    *everything*: with this project's own repository, and the tags that hold lists of referrers.
    """
    return _places(_tags(connect, prefix, everything=everything), everything=everything)


def all_places(connect: Connect, records: Callable[[str], Collection[str]]) -> tuple[list[Place], Mapping[Place, str]]:
    """The same for all repositories; and of a frontend that has *records* of each, those whose list of tags cannot be
    read, with why. Raises RegistryError.

    zot says that there is no such repository (ListTags, pkg/api/routes.go). Distribution, which has none, says so of
    each without a tag.
    """

    def is_there(registry: Api, repository: str) -> bool:
        return retry(lambda: registry.has_repository(repository), PATIENCE)

    listed = _tags(connect)
    without = [repository for repository, tags in listed if not tags and records(repository)]
    unlisted = [repository for repository, there in each(connect, is_there, without) if not there]
    return _places(listed), dict.fromkeys(map(Place, unlisted), "the list of its tags cannot be read")


def _tags(connect: Connect, prefix: str = "", *, everything: bool = False) -> list[tuple[str, list[str]]]:
    with connect() as registry:
        found = repositories(registry)
    wanted = [
        one
        for one in found
        if (everything or not one.startswith(OURS)) and (not prefix or one == prefix or one.startswith(f"{prefix}/"))
    ]
    return list(each(connect, tags_of, wanted))


def _places(listed: Iterable[tuple[str, list[str]]], *, everything: bool = False) -> list[Place]:
    return [
        Place(repository, tag)
        for repository, tags in listed
        for tag in tags
        if everything or not REFERRERS_TAG.fullmatch(tag)
    ]


def repositories(registry: Api) -> list[str]:
    """All of them, sorted; asked again for PATIENCE seconds. Raises RegistryError."""
    return sorted(retry(registry.repositories, PATIENCE))


def tags_of(registry: Api, repository: str) -> list[str]:
    """Its tags, in the same way."""
    return sorted(retry(lambda: registry.tags(repository), PATIENCE))


def look(connect: Connect, where: Sequence[Place], *, referrers: bool) -> list[Image]:
    """The images at *where*, in that order; with what refers to them, if asked. Raises RegistryError."""

    reader = graph.Reader(PATIENCE)

    def one(registry: Api, place: Place) -> Image:
        found = reader.read(registry, place)
        if found is None or isinstance(found, str):
            return Image(place, None, found or f"{place} has no manifest")
        listed = retry(lambda: _referrers(registry, found), PATIENCE) if referrers else ()
        return Image(place, found, referrers=listed)

    return [image for _, image in each(connect, one, where)]


def _referrers(registry: Api, image: graph.Graph) -> tuple[Referrer, ...]:
    return tuple(
        Referrer(manifest.digest, str(one.get("digest")), str(one.get("artifactType") or ""), int(one.get("size") or 0))
        for manifest in image.manifests
        if not image.lacks(manifest)
        for one in registry.referrers(image.place.repository, manifest.digest)
    )


def _children(image: graph.Graph) -> list[tuple[oci.Descriptor, str, bool]]:
    """The manifests of an index, with platform and whether they are there; without BuildKit's own attestations."""
    if image.root.media_type not in oci.INDEXES:
        return []
    return [
        (child, str(child.platform), not image.lacks(child))
        for child in image.needs[image.root.digest]
        if child.platform is not None and child.platform.os != "unknown"
    ]
