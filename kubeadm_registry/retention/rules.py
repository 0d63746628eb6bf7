"""Which images of a repository a rule keeps. Each part of ``keep`` is decided by itself; one that keeps is enough."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from kubeadm_registry.config.durations import seconds
from kubeadm_registry.oci.references import TRASH
from kubeadm_registry.retention import globs, versions
from kubeadm_registry.retention.policy import Keep


@dataclass(frozen=True, slots=True)
class Image:
    """A manifest with its tags in one repository: all of them stay, or all go.

    *first_seen*: when it or the newest of its tags was first seen; *last_pulled* None: never. Seconds since 1970.
    """

    digest: str
    tags: tuple[str, ...]
    first_seen: int
    last_pulled: int | None


def kept(keep: Keep, images: Sequence[Image], now: int, pulls_since: int | None) -> Mapping[str, str]:
    """The digests of *images* that *keep* keeps at *now*, each with the part that does.

    *pulls_since* is from when on pulls have been recorded, None: they are not. What depends on other images
    (``newest``, ``semver``) depends on all of the repository, also on those that are kept otherwise.
    """
    found: dict[str, str] = {}
    for part, digests in _parts(keep, images, now, pulls_since):
        for digest in digests:
            found.setdefault(digest, part)
    return found


def _parts(keep: Keep, images: Sequence[Image], now: int, pulls_since: int | None) -> Iterator[tuple[str, list[str]]]:
    if keep.all:
        yield "all", [image.digest for image in images]
    if keep.newest is not None:
        # What waits in a trash whose record was begun anew has the tag that it got there, and is no newer than others.
        ranked = sorted((one.first_seen for one in images if not all(map(_is_trash, one.tags))), reverse=True)
        oldest = ranked[: keep.newest][-1] if ranked else 0
        yield f"newest {keep.newest}", [image.digest for image in images if image.first_seen >= oldest]
    if keep.within is not None:
        since = now - seconds(keep.within)
        yield f"first seen within {keep.within}", [image.digest for image in images if image.first_seen >= since]
    if keep.pulled_within is not None:
        since = now - seconds(keep.pulled_within)
        if pulls_since is None or pulls_since > since:
            known = "not known of all nodes" if pulls_since is None else "recorded for a shorter time"
            yield f"pulled within {keep.pulled_within}: pulls are {known}", [image.digest for image in images]
        else:
            used = [image.digest for image in images if max(image.first_seen, image.last_pulled or 0) >= since]
            yield f"pulled within {keep.pulled_within}", used
    for glob in keep.tags:
        pattern = globs.tag(glob)
        yield f"tag {glob}", [image.digest for image in images if any(map(pattern.match, image.tags))]
    if keep.semver is not None:
        tags = {tag for image in images for tag in image.tags}
        newest = versions.newest(tags, keep.semver.newest, keep.semver.of_each)
        part = f"newest {keep.semver.newest} of each {keep.semver.of_each} version"
        yield part, [image.digest for image in images if not newest.isdisjoint(image.tags)]


def _is_trash(tag: str) -> bool:
    return tag.startswith(TRASH)
