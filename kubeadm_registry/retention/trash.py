"""The trash: deleted images that can be restored until their window is over.

A deleted image loses its tags and gets another one in the same repository, its *trash tag*. No byte moves, every
digest can be pulled as before, and to restore it is to give the tags back. The record says which tags those were: a
tag cannot hold the name of another.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

from kubeadm_registry.formats import Damaged, Format, Found, kept, split
from kubeadm_registry.oci.references import TRASH
from kubeadm_registry.retention.fields import items, number, text, texts

FORMAT = Format("the record of the trash")


def trash_tag(digest: str) -> str:
    """The tag under which the manifest *digest* waits; always the same, so that a run can be repeated."""
    return TRASH + digest.partition(":")[2]


@dataclass(frozen=True, slots=True)
class Trashed:
    """An image in the trash: the manifest *digest* of *repository*, which had *tags*, and its *parts* there.

    Each of the *tags* is with when it was first seen: one that comes back must not be younger than it was. *parts* are
    the manifests that go with it, wholes before their parts. *deleted* is when it got here, in seconds since 1970;
    *plan* is the digest of the plan, *rule* and *why* are its words; *size* is in bytes. *complete*: it has lost all
    its tags; else a run was broken off.
    """

    repository: str
    digest: str
    tags: Mapping[str, int]
    parts: tuple[str, ...]
    deleted: int
    plan: str
    rule: str
    why: str
    size: int
    complete: bool = False
    more: Mapping[str, Any] = field(default_factory=dict, compare=False)

    @property
    def key(self) -> tuple[str, str]:
        """What it is, wherever it stands."""
        return self.repository, self.digest

    @property
    def tag(self) -> str:
        """The tag under which it waits."""
        return trash_tag(self.digest)

    def __str__(self) -> str:
        return f"{self.repository}:{min(self.tags)}" if self.tags else f"{self.repository}@{self.digest}"

    def to_dict(self) -> dict[str, Any]:
        """As an object of a record."""
        values = {key: getattr(self, key) for key in _KEYS}
        return {**values, "tags": dict(sorted(self.tags.items())), "parts": list(self.parts), **self.more}

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Self:
        """The image that the object *values* describes; keys of a newer release are kept. Raises Damaged."""
        known, more = split(values, _KEYS)
        try:
            return cls(
                text(known["repository"]),
                text(known["digest"]),
                {text(tag): number(seen) for tag, seen in known["tags"].items()},
                texts(known["parts"]),
                number(known["deleted"]),
                text(known["plan"]),
                text(known["rule"]),
                text(known["why"]),
                number(known["size"]),
                known["complete"] is True,
                more,
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise Damaged(f"an image in the trash: {error!r}") from error


@dataclass(frozen=True, slots=True)
class Trash:
    """Everything that waits to be deleted for good."""

    images: Mapping[tuple[str, str], Trashed] = field(default_factory=dict)
    found: Found | None = field(default=None, compare=False)

    def __iter__(self) -> Iterator[Trashed]:
        return iter(sorted(self.images.values(), key=lambda one: (one.repository, str(one), one.digest)))

    def tags(self, *others: Trash) -> Mapping[str, frozenset[str]]:
        """The trash tags of each repository, by this record and *others*."""
        found: dict[str, set[str]] = {}
        for one in (image for record in (self, *others) for image in record.images.values()):
            found.setdefault(one.repository, set()).add(one.tag)
        return {name: frozenset(tags) for name, tags in found.items()}

    def with_all(self, more: Iterable[Trashed]) -> Self:
        """With *more* images. One that is here already keeps the tags that it had when it came."""
        images = dict(self.images)
        for one in more:
            before = images.get(one.key)
            images[one.key] = replace(one, tags={**one.tags, **before.tags}) if before else one
        return replace(self, images=images)

    def without(self, gone: Iterable[Trashed]) -> Self:
        """Without the images *gone*."""
        keys = {one.key for one in gone}
        return replace(self, images={key: one for key, one in self.images.items() if key not in keys})

    def to_json(self) -> bytes:
        """The record. Raises NewerFormat."""
        values = {"images": [one.to_dict() for one in self]}
        return FORMAT.render(kept(values, self.found), self.found)

    @classmethod
    def parse(cls, content: bytes) -> Self:
        """The trash in a record. Raises Damaged, NewerFormat."""
        found = FORMAT.parse(content)
        try:
            images = [Trashed.parse(one) for one in items(found.values.get("images"))]
        except TypeError as error:
            raise Damaged(f"its images: {error}") from error
        return cls({one.key: one for one in images}, found)


_KEYS = ("repository", "digest", "tags", "parts", "deleted", "plan", "rule", "why", "size", "complete")
