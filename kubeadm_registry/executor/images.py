"""What is done with one image: into the trash, back from it, away for good. Each can be repeated after any break.

A tag alone is deleted by way of a tombstone where the registry knows no other (``images.tombstone``). Pushes go on
meanwhile, so each request that takes a tag or a manifest away comes right after the one that looks whether it may
(docs/decisions/0025-pushes-go-on-while-retention-deletes.md).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable
from functools import partial
from typing import TypeVar

from kubeadm_registry.errors import RegistryError
from kubeadm_registry.images import artifacts, referrers
from kubeadm_registry.images.absence import between_canaries
from kubeadm_registry.images.tombstone import TOMBSTONE, TOMBSTONE_DIGEST
from kubeadm_registry.oci import descriptors as oci
from kubeadm_registry.oci.references import TRASH
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
    since keeps it, and a tag that means another image by now is left alone. Tags of the trash are given by nobody else,
    and each image that went before this one has one.
    """
    repository = image.repository
    found = _ask(lambda: registry.manifest_of_type(repository, image.digest))
    if found is None:
        raise Skipped("it is gone")
    new = [tag for tag in _ask(lambda: registry.tags(repository)) if tag not in known and not tag.startswith(TRASH)]
    if again := [tag for tag in new if _means(registry, repository, tag) == image.digest]:
        raise Skipped(f"it was tagged {', '.join(again)} meanwhile")
    going = tuple(tag for tag in image.tags if _means(registry, repository, tag) == image.digest)
    if image.tags and not going and _means(registry, repository, image.tag) != image.digest:
        raise Skipped("none of its tags points to it any longer")
    content, kind = found
    _ask(lambda: registry.push_manifest(repository, image.tag, content, kind))
    gone = untag(registry, repository, going, image.digest)
    _complete(registry, repository, [tag for tag in image.tags if tag not in gone])
    return gone


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
        if _ask(partial(_give, registry, repository, tag, content, kind)):
            back.append(tag)
    if not untag(registry, repository, [image.tag], image.digest):
        _complete(registry, repository, [image.tag])
    return tuple(back)


def _give(registry: Api, repository: str, tag: str, content: bytes, kind: str) -> bool:
    """Push the manifest *content* as *tag*, which is looked at each time that this is tried, if that means nothing."""
    if not _is_free(registry, repository, tag):
        return False
    registry.push_manifest(repository, tag, content, kind)
    return True


def purge(registry: Api, image: Trashed, known: Collection[str]) -> None:
    """Delete *image* and its parts for good. Raises Skipped, RegistryError.

    *known* are manifests that the repository had when the order was made: what these need is no part of it. Their blobs
    are freed by a collection.
    """
    repository = image.repository
    waits = _means(registry, repository, image.tag)
    if waits not in (image.digest, None):
        raise Skipped("its tag in the trash means another image")
    looked: set[str] = set()
    needed = _needed(registry, image, known, looked)
    if waits and image.tag not in looked:  # zot makes a 404 of a storage error
        raise Skipped("the registry does not list its tag in the trash, so there may be others as well")
    going = [image.digest, *(part for part in image.parts if part not in needed)]
    wholes: dict[str, Collection[str] | None] = {}
    for digest in going:
        found = _ask(partial(registry.manifest_of_type, repository, digest))
        if found is None:  # an earlier run got so far, or it is out of reach
            wholes[digest] = None
            continue
        content, kind = found
        subject = referrers.subject_of(content)
        if digest not in needed and subject not in going:  # else its list goes as well
            _ask(partial(referrers.forget, registry, repository, digest, content))
        # To look at all tags takes long where there are many. What was pushed meanwhile are few.
        needed |= _needed(registry, image, known, looked)
        if image.digest in needed:
            raise Skipped("something else needs it by now")
        if digest in needed:
            continue
        of = (
            whole for whole, needs in wholes.items()
            # Of an image with many signatures none is a part of another.
            if not subject or whole in (image.digest, subject) or needs is None or digest in needs
        )  # fmt: skip
        if any(_ask(partial(registry.digest, repository, whole)) for whole in of):
            raise Skipped("it was pushed again meanwhile")
        _ask(partial(registry.delete_manifest, repository, digest))
        if needs := _needs(content):
            wholes[digest] = needs
        # A tag that meant something else when it was looked at, and has gone with this, was given to it since.
        gone = sorted(looked - {image.tag, *_ask(lambda: registry.tags(repository))})
        if moved := [tag for tag in gone if _means(registry, repository, tag) is None]:
            for tag in moved:
                _ask(partial(registry.push_manifest, repository, tag, content, kind))
            raise Skipped(f"it was tagged {', '.join(moved)} meanwhile")
    _expect_gone(registry, image, [digest for digest in going if digest not in needed])


def forget(registry: Api, image: Trashed) -> None:
    """See that nothing of *image* is there any more: its record is all by which it can come back.

    Raises Skipped, RegistryError.
    """
    _expect_gone(registry, image, (image.digest, *image.parts))


def _expect_gone(registry: Api, image: Trashed, digests: Iterable[str]) -> None:
    """Raise Skipped if the tag of *image* in the trash is there, or one of these *digests* of it; or RegistryError."""
    repository = image.repository
    _complete(registry, repository, [image.tag])
    with between_canaries(registry, PATIENCE):
        there = image.tag in _ask(lambda: registry.tags(repository)) or any(
            _ask(partial(registry.digest, repository, one)) for one in digests
        )
    if there:
        raise Skipped("it is still there")


def sweep(registry: Api, repository: str, tags: Iterable[str]) -> None:
    """Delete those of *tags* that a broken run has left, which mean a tombstone. Raises RegistryError."""
    untag(registry, repository, tags, TOMBSTONE_DIGEST)


def untag(registry: Api, repository: str, tags: Iterable[str], meaning: str | None) -> tuple[str, ...]:
    """Delete those of *tags* that mean the digest *meaning*, and no manifest; those tags. Raises RegistryError.

    None: they mean nothing, and are listed. So are those that a broken run has left with a tombstone.
    """
    going = list(tags)
    alone = bool(going) and _ask(lambda: registry.can_untag(repository))
    if going and not alone:
        _ask(lambda: push_blob(registry, repository, artifacts.EMPTY.digest, artifacts.EMPTY_CONTENT))
    gone = []
    for tag in going:
        if _ask(partial(_take, registry, repository, tag, (meaning, TOMBSTONE_DIGEST), alone=alone)):
            gone.append(tag)
    if gone and not alone:
        _ask(lambda: registry.delete_manifest(repository, TOMBSTONE_DIGEST))
    return tuple(gone)


def _take(registry: Api, repository: str, tag: str, meanings: Collection[str | None], *, alone: bool) -> bool:
    """Take *tag* away if it means one of *meanings*; whether it did.

    It is looked at each time that this is tried: somebody may have pushed it while the registry had no answer.
    """
    if registry.digest(repository, tag) not in meanings:
        return False
    if alone:
        registry.delete_manifest(repository, tag)
    else:
        registry.push_manifest(repository, tag, TOMBSTONE, oci.MANIFEST)
    return True


def _complete(registry: Api, repository: str, tags: Collection[str]) -> None:
    """Delete those of *tags* that are listed and mean nothing, where that is so because a deletion was broken off.

    Distribution 2.8 deletes a manifest first, and then looks for its tags. zot makes a 404 of a storage error.
    """
    listed = {*_ask(lambda: registry.tags(repository))} if tags else ()
    left = [tag for tag in tags if tag in listed and _ask(partial(registry.digest, repository, tag)) is None]
    if left and not _ask(lambda: registry.can_untag(repository)):
        untag(registry, repository, left, None)


def _needed(registry: Api, image: Trashed, known: Collection[str], looked: set[str]) -> set[str]:
    """What tags of the repository mean, but for the tags that go with *image*; and what new manifests there need.

    Only those that were not *looked* at before; these are added there, and what somebody deleted meanwhile is not.
    """
    found: set[str] = set()
    going = {image.digest, *image.parts}
    tags = _ask(lambda: registry.tags(image.repository))
    looked.intersection_update(tags)
    for tag in tags:
        if tag == image.tag:
            looked.add(tag)
        if tag in looked or subject_of_tag(tag) in going:
            continue
        digest = _means(registry, image.repository, tag)
        if digest is None:
            continue
        looked.add(tag)
        needed = [digest]
        while needed:
            digest = needed.pop()
            if digest not in found and digest not in known:
                needed += _needs(_ask(partial(registry.manifest, image.repository, digest)))
            found.add(digest)
    return found


def _needs(content: bytes | None) -> set[str]:
    """The manifests that the manifest *content* needs: of an index its parts, of a referrer its subject."""
    try:
        document = json.loads(content or b"{}")
        held = [*(document.get("manifests") or ()), *([document["subject"]] if document.get("subject") else ())]
        return {str(one["digest"]) for one in held}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise Skipped(f"a new manifest of its repository cannot be read: {error!r}") from error


def _means(registry: Api, repository: str, tag: str) -> str | None:
    """The digest that *tag* means now; None: nothing, or a tombstone that a broken run has left."""
    digest = _ask(lambda: registry.digest(repository, tag))
    return None if digest == TOMBSTONE_DIGEST else digest


def _is_free(registry: Api, repository: str, tag: str) -> bool:
    """Whether *tag* means nothing, so that it may be given to another image. Raises Skipped, RegistryError.

    zot makes a 404 of a storage error, and lists the tag all the same. Distribution 2.8, which deletes no tag alone,
    lists one without a manifest if it broke off while it deleted that.
    """
    digest = _ask(lambda: registry.digest(repository, tag))
    listed = digest is None and tag in _ask(lambda: registry.tags(repository))
    if listed and _ask(lambda: registry.can_untag(repository)):
        raise Skipped(f"the registry lists its tag {tag} and does not find it, so it may mean a newer image")
    return digest in (None, TOMBSTONE_DIGEST)


def _ask(question: Callable[[], Outcome]) -> Outcome:
    """The answer to *question*, which is asked again while the registry has none."""
    return retry(question, PATIENCE)


def is_over(error: RegistryError) -> bool:
    """Whether *error* says that this executor's term is over: nothing more may be tried."""
    return error.status in (403, 409)
