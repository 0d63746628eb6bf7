"""What is done with one image: into the trash, back from it, away for good. Each can be repeated after any break.

A tag alone is deleted by way of a tombstone where the registry knows no other (``images.tombstone``).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable
from functools import partial
from typing import TypeVar

from kubeadm_registry.errors import RegistryError
from kubeadm_registry.images import artifacts, referrers
from kubeadm_registry.images.tombstone import TOMBSTONE, TOMBSTONE_DIGEST
from kubeadm_registry.oci import descriptors as oci
from kubeadm_registry.registry import Api, push_blob, retry
from kubeadm_registry.retention.protected import subject_of_tag
from kubeadm_registry.retention.trash import Trashed

#: Seconds that the registry may have no answer: longer than a frontend needs to be restarted.
PATIENCE = 30.0
Outcome = TypeVar("Outcome")


class Skipped(Exception):
    """The image stays as it is; the text says why."""


def delete(registry: Api, image: Trashed, known: Collection[str]) -> tuple[str, ...]:
    """Move *image* to the trash; the tags that it lost. Raises Skipped, RegistryError.

    *known* are the tags that its repository had when the order was made: a tag that somebody has given to the image
    since keeps it, and a tag that means another image by now is left alone.
    """
    repository = image.repository
    found = _ask(lambda: registry.manifest_of_type(repository, image.digest))
    if found is None:
        raise Skipped("it is gone")
    new = [tag for tag in _ask(lambda: registry.tags(repository)) if tag not in known and tag != image.tag]
    if again := [tag for tag in new if _means(registry, repository, tag) == image.digest]:
        raise Skipped(f"it was tagged {', '.join(again)} meanwhile")
    going = tuple(tag for tag in image.tags if _means(registry, repository, tag) == image.digest)
    if image.tags and not going and _means(registry, repository, image.tag) != image.digest:
        raise Skipped("none of its tags means it any more")
    content, kind = found
    _ask(lambda: registry.push_manifest(repository, image.tag, content, kind))
    untag(registry, repository, going)
    return going


def restore(registry: Api, image: Trashed) -> tuple[str, ...]:
    """Give *image* the tags back that mean nothing now; those tags. Raises Skipped, RegistryError.

    A tag that means another image by now is newer, and stays.
    """
    repository = image.repository
    found = _ask(lambda: registry.manifest_of_type(repository, image.digest))
    if found is None:
        raise Skipped("its manifest is gone, so it cannot be restored")
    content, kind = found
    back = []
    for tag in image.tags:
        if _means(registry, repository, tag) is None:
            _ask(partial(registry.push_manifest, repository, tag, content, kind))
            back.append(tag)
    if _means(registry, repository, image.tag) == image.digest:
        untag(registry, repository, [image.tag])
    return tuple(back)


def purge(registry: Api, image: Trashed, known: Collection[str]) -> None:
    """Delete *image* and its parts for good. Raises Skipped, RegistryError.

    *known* are the manifests that the repository had when the order was made. Their blobs are freed by a collection.
    """
    repository = image.repository
    if _means(registry, repository, image.tag) not in (image.digest, None):
        raise Skipped("its tag in the trash means another image")
    needed = _needed(registry, image, known)
    if image.digest in needed:
        raise Skipped("something else needs it by now")
    going = [image.digest, *(part for part in image.parts if part not in needed)]
    for digest in going:
        found = _ask(partial(registry.manifest_of_type, repository, digest))
        if found is None:
            continue  # an earlier run got so far
        content, _ = found
        if referrers.subject_of(content) not in going:  # else its list goes as well
            _ask(partial(referrers.forget, registry, repository, digest, content))
        _ask(partial(registry.delete_manifest, repository, digest))


def sweep(registry: Api, repository: str, tags: Iterable[str]) -> None:
    """Delete those of *tags* that a broken run has left, which mean a tombstone. Raises RegistryError."""
    left = [tag for tag in tags if _ask(partial(registry.digest, repository, tag)) == TOMBSTONE_DIGEST]
    untag(registry, repository, left)


def untag(registry: Api, repository: str, tags: Iterable[str]) -> None:
    """Delete *tags*, and no manifest. Raises RegistryError."""
    going = list(tags)
    if not going:
        return
    if _ask(lambda: registry.can_untag(repository)):
        for tag in going:
            _ask(partial(registry.delete_manifest, repository, tag))
        return
    _ask(lambda: push_blob(registry, repository, artifacts.EMPTY.digest, artifacts.EMPTY_CONTENT))
    for tag in going:
        _ask(partial(registry.push_manifest, repository, tag, TOMBSTONE, oci.MANIFEST))
    _ask(lambda: registry.delete_manifest(repository, TOMBSTONE_DIGEST))


def _needed(registry: Api, image: Trashed, known: Collection[str]) -> set[str]:
    """What tags of the repository mean, but for the tags that go with *image*; and what new manifests there need."""
    found: set[str] = set()
    going = {image.digest, *image.parts}
    for tag in _ask(lambda: registry.tags(image.repository)):
        if tag == image.tag or subject_of_tag(tag) in going:
            continue
        digest = _means(registry, image.repository, tag)
        if digest is None:
            continue
        found.add(digest)
        if digest not in known:
            found |= _needs(_ask(partial(registry.manifest, image.repository, digest)))
    return found


def _needs(content: bytes | None) -> set[str]:
    """The manifests that the manifest *content* needs: of an index its parts, of a referrer its subject."""
    try:
        document = json.loads(content or b"{}")
        held = [*document.get("manifests", ()), *([document["subject"]] if document.get("subject") else ())]
        return {str(one["digest"]) for one in held}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise Skipped(f"a new manifest of its repository cannot be read: {error!r}") from error


def _means(registry: Api, repository: str, tag: str) -> str | None:
    """The digest that *tag* means now; None: nothing, or a tombstone that a broken run has left."""
    digest = _ask(lambda: registry.digest(repository, tag))
    return None if digest == TOMBSTONE_DIGEST else digest


def _ask(question: Callable[[], Outcome]) -> Outcome:
    """The answer to *question*, which is asked again while the registry has none."""
    return retry(question, PATIENCE)


def is_over(error: RegistryError) -> bool:
    """Whether *error* says that this executor's term is over: nothing more may be tried."""
    return error.status in (403, 409)
