"""What the registry holds and what the ledger knows of it: the value that a plan is made from.

Manifests and blobs are named by their content, so each is here once, whatever repositories it is in. Digests are text
(``sha256:...``), sizes bytes, times whole seconds since 1970 (UTC).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from kubeadm_registry.images.names import OURS, name_of
from kubeadm_registry.oci import descriptors as oci
from kubeadm_registry.retention.reasons import Reason

#: So many of the same kind are told one by one.
_MOST_REASONS = 10


@dataclass(frozen=True, slots=True)
class Manifest:
    """One manifest: what it needs, and what it refers to.

    *config* is empty for an index; *blobs* are the layers, *children* the manifests of an index, *subject* is what a
    signature or the like refers to (image-spec, "Image Manifest Property Descriptions"). What these digests name may be
    absent from the registry.
    """

    media_type: str
    size: int
    config: str = ""
    blobs: tuple[str, ...] = ()
    children: tuple[str, ...] = ()
    subject: str = ""


@dataclass(frozen=True, slots=True)
class Tag:
    """What a tag means, and when it was first seen with that meaning."""

    digest: str
    first_seen: int


@dataclass(frozen=True, slots=True)
class Seen:
    """What the ledger knows of a manifest in one repository.

    *last_pulled*: by any tag or by digest; None: never, as far as is known. *untagged_since*: since when no tag leads
    to it, by itself or by what it is a part of; None: one does, or it is not known, then it counts from when it was
    first seen.
    """

    first_seen: int
    last_pulled: int | None = None
    untagged_since: int | None = None


@dataclass(frozen=True, slots=True)
class Repository:
    """The tags and manifests of one repository. *trash* are those tags under which deleted images wait."""

    tags: Mapping[str, Tag]
    manifests: Mapping[str, Seen]
    trash: frozenset[str] = frozenset()

    def live(self) -> Iterator[tuple[str, Tag]]:
        """The tags that are not in the trash, sorted."""
        for name in sorted(self.tags.keys() - self.trash):
            yield name, self.tags[name]


EMPTY = Repository({}, {})


@dataclass(frozen=True, slots=True)
class Inventory:
    """Everything in the registry: *repositories* by name, *manifests* and the sizes of *blobs* by digest.

    *pulls_since* is from when on pulls have been recorded; None: they are not. *problems* say what could not be read:
    an inventory with problems is not complete, and no plan is made from it.
    """

    repositories: Mapping[str, Repository]
    manifests: Mapping[str, Manifest]
    blobs: Mapping[str, int]
    pulls_since: int | None = None
    problems: tuple[Reason, ...] = field(default=())

    def reasons(self) -> list[Reason]:
        """Why no plan can be made from this; empty if it is complete."""
        found = sorted(self.problems)
        missing = sorted(set(self._missing()))
        found += [
            Reason("ManifestMissing", text, "read the registry again") for text in missing[:_MOST_REASONS]
        ]  # one of these is enough to refuse
        found += [
            Reason(
                "ManifestNotUnderstood",
                f"{place} has {f'the media type {kind}' if kind else 'no media type'}: what it needs is not known",
                f"delete it with `kubeadm-registry images delete {place}`; a rule does not leave it out",
            )
            for place, kind in sorted(self._strange())[:_MOST_REASONS]
        ]
        return found

    def newest(self) -> int:
        """When anything was first seen last."""
        return max(
            (
                one.first_seen
                for repository in self.repositories.values()
                for held in (repository.tags, repository.manifests)
                for one in held.values()
            ),
            default=0,
        )

    def _strange(self) -> Iterator[tuple[str, str]]:
        for name, repository in self.repositories.items():
            for digest in repository.manifests.keys() & self.manifests.keys():
                if (kind := self.manifests[digest].media_type) not in oci.TREES:
                    yield name_of(name, digest), kind

    def _missing(self) -> Iterator[str]:
        for name, repository in self.repositories.items():
            for tag, what in repository.tags.items():
                if what.digest not in repository.manifests:
                    yield f"{name}:{tag} is {what.digest}, which is not in the inventory of {name}"
            for digest in repository.manifests:
                if digest not in self.manifests:
                    yield f"{name}@{digest} was not read"


def is_own(repository: str) -> bool:
    """Whether *repository* belongs to kubeadm-registry: the canary image, the ledger, records of bundles."""
    return repository.startswith(OURS)
