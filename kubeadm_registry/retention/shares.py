"""How large a share of the registry goes: what a plan and its executor both reckon."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from kubeadm_registry.retention.reasons import Reason

#: So few images need no approval for their share.
_FEW = 5


@dataclass(frozen=True, slots=True)
class Count:
    """How many *tags* of images there are, *loose* manifests, to which no tag leads, and *images* that have tags; and
    how many of these go."""

    tags_going: int = 0
    tags: int = 0
    loose_going: int = 0
    loose: int = 0
    images_going: int = 0
    images: int = 0

    def __add__(self, other: Count) -> Count:
        return Count(
            self.tags_going + other.tags_going, self.tags + other.tags,
            self.loose_going + other.loose_going, self.loose + other.loose,
            self.images_going + other.images_going, self.images + other.images,
        )  # fmt: skip


def too_large(counts: Mapping[str, Count], most: int) -> Iterator[Reason]:
    """Why so much goes that it needs an approval: by repository, and of all together. *most* is a percentage."""
    for name, count in counts.items():
        yield from _too_large("ShareOfRepository", name, count, most)
    yield from _too_large("ShareOfAll", "the registry", sum(counts.values(), Count()), most)


def _too_large(code: str, where: str, count: Count, most: int) -> Iterator[Reason]:
    # Untagged manifests that stay must not make a large share of the tags look small, nor the tags of one image that of
    # all images.
    for going, held, what in (
        (count.tags_going, count.tags, "tag"),
        (count.images_going, count.images, "image"),
        (count.tags_going + count.loose_going, count.tags + count.loose, "tag or untagged manifest"),
    ):
        if going > _FEW and going * 100 > most * held:
            noun = what if held == 1 else re.sub("(tag|image|manifest)(?= |$)", r"\1s", what)
            yield Reason(
                code,
                f"deletes {going} of {held} {noun} of {where}, which is more than {most} %",
                "read the plan, then approve or reject it",
            )
            return
