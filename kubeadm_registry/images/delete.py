"""Deleting images: what goes, and what must stay because something else needs it. First the plan, then the deed."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from kubeadm_registry.errors import Error, RegistryError
from kubeadm_registry.images import artifacts, graph, referrers
from kubeadm_registry.images.absence import between_canaries
from kubeadm_registry.images.blobs import Blob
from kubeadm_registry.images.names import OURS, REFERRERS_TAG, Place, name_of
from kubeadm_registry.images.pool import PATIENCE, Connect, each
from kubeadm_registry.images.tombstone import TOMBSTONE, TOMBSTONE_DIGEST
from kubeadm_registry.oci import descriptors as oci
from kubeadm_registry.oci.references import TRASH
from kubeadm_registry.registry import Api, push_blob, referrers_tag, retry


@dataclass(frozen=True, slots=True)
class Deletion:
    """One request: delete *place*, a tag or a digest; its image is *digest*, and *tags* are all that go with it.

    *digest* is empty for a tag that is listed and whose manifest is lost.
    """

    place: Place
    digest: str
    tags: tuple[str, ...]

    def __str__(self) -> str:
        others = [name_of(self.place.repository, tag) for tag in self.tags if tag != self.place.reference]
        also = f" and with it {', '.join(others)}" if others else ""
        about = "" if self.place.reference == self.digest else f" ({self.digest or 'its manifest is lost'})"
        return f"{self.place}{about}{also}"


def plan(connect: Connect, places: Sequence[Place], *, all_tags: bool) -> list[Deletion]:
    """What to ask the registry for so that *places* go and nothing else that was not agreed to.

    *all_tags*: every tag of a repository named without one, and other tags of an image that goes by digest. Raises
    Error (DeleteRefused) with everything that stands against it, RegistryError.
    """
    wanted: dict[str, list[str]] = {}
    for place in places:
        wanted.setdefault(place.repository, []).append(place.reference)
    found: list[Deletion] = []
    problems: list[str] = []
    for repository, references in wanted.items():
        if repository.startswith(OURS):
            problems.append(f"{repository} belongs to kubeadm-registry itself")
            continue
        held = _Repository.read(connect, repository)
        more, against = held.plan(references, all_tags=all_tags)
        found += more
        problems += against
    if problems:
        raise Error(
            "nothing was deleted:\n" + "\n".join(f"  {problem}" for problem in problems), code="DeleteRefused",
            hint="omit what is listed above, or also delete what refers to it",
        )  # fmt: skip
    return found


def carry_out(connect: Connect, deletion: Deletion) -> bool:
    """Delete; False if it was gone already. Raises RegistryError, also for a tag that means another image by now
    (ImageChanged).

    What referred to another image is taken from the list that the registry does not keep itself.
    """
    with connect() as registry:
        where = deletion.place
        if not deletion.digest:
            return forget(registry, where)
        if where.reference == deletion.digest:  # else a tag goes alone
            content = retry(partial(registry.manifest, where.repository, deletion.digest), PATIENCE)
            if content is not None:  # first, for a registry may keep what an index needs
                retry(partial(referrers.forget, registry, where.repository, deletion.digest, content), PATIENCE)
        return _delete(registry, where, deletion.digest)


def _delete(registry: Api, where: Place, meaning: str) -> bool:
    """Delete *where*, a tag that means the digest *meaning*, or that digest; False if it was gone already.

    A tag is looked at again each time that this is tried: somebody may have pushed it while the registry had no answer.
    Raises RegistryError (ImageChanged).
    """
    tried = False

    def attempt() -> bool:
        nonlocal tried
        if where.reference != meaning and registry.digest(where.repository, where.reference) not in (meaning, None):
            raise _pushed_again(where)
        before, tried = tried, True  # the answer to an earlier try may be lost
        return registry.delete_manifest(where.repository, where.reference) or before

    return retry(attempt, PATIENCE)


def forget(registry: Api, where: Place) -> bool:
    """Delete a tag whose manifest is lost: registries delete only what they can read, so it gets another one first.

    False if it was gone already. Raises RegistryError, also for one whose manifest is there (ImageChanged).
    """
    if retry(partial(registry.digest, where.repository, where.reference), PATIENCE) is not None:
        raise _pushed_again(where)
    retry(partial(push_blob, registry, where.repository, artifacts.EMPTY.digest, artifacts.EMPTY_CONTENT), PATIENCE)
    retry(partial(registry.push_manifest, where.repository, where.reference, TOMBSTONE, oci.MANIFEST), PATIENCE)
    alone = retry(partial(registry.can_untag, where.repository), PATIENCE)
    going = where.reference if alone else TOMBSTONE_DIGEST
    return _delete(registry, Place(where.repository, going), TOMBSTONE_DIGEST)


def _pushed_again(where: Place) -> RegistryError:
    return RegistryError(f"{where} was pushed again", code="ImageChanged", hint="delete it again if you still want to")


def blobs(connect: Connect, deletions: Sequence[Deletion]) -> dict[Blob, int]:
    """The blobs that the manifests need that go by digest with *deletions*, with their sizes. Raises RegistryError."""
    found: dict[Blob, int] = {}
    with connect() as registry:
        for one in deletions:
            if one.place.reference == one.digest:
                image = _image(one.place.repository, registry, one.digest)
                # Those of an index's images go with these, if they go.
                needs = image.needs.get(one.digest, ()) if image is not None else ()
                found |= {
                    (one.place.repository, need.digest): need.size for need in needs if need.media_type not in oci.TREES
                }
    return found


@dataclass(frozen=True, slots=True)
class _Repository:
    """One repository: its images by tag, and whether a tag can go alone."""

    name: str
    images: Mapping[str, graph.Graph]
    lost: frozenset[str]
    """The tags whose manifest is not there."""
    connect: Connect
    can_untag: bool

    @classmethod
    def read(cls, connect: Connect, name: str) -> _Repository:
        with connect() as registry:
            tags = retry(partial(registry.tags, name), PATIENCE)
            can_untag = bool(tags) and retry(partial(registry.can_untag, name), PATIENCE)

        images = _images(connect, name, tags)
        if lost := sorted(set(tags) - images.keys()):
            with connect() as registry, between_canaries(registry, PATIENCE):  # all may have been out of reach before
                images |= _images(connect, name, lost)
        return cls(name, images, frozenset(tags) - images.keys(), connect, can_untag)

    def plan(self, references: Sequence[str], *, all_tags: bool) -> tuple[list[Deletion], list[str]]:
        """What to delete for *references*, and what stands against it."""
        problems = []
        digests, tags, here = dict[str, graph.Graph](), set[str](), self.lost | self.images.keys()
        for reference in dict.fromkeys(references):
            if not reference and not here:
                problems.append(f"{Place(self.name)} is not in the registry")
            elif not reference and not all_tags:
                problems.append(f"{Place(self.name)} has {len(here)} tags; list those to delete, or pass --all-tags")
            elif not reference:
                tags |= here
            elif ":" in reference and (image := self._by_digest(reference)):
                digests[reference] = image
            elif reference in here:
                tags.add(reference)
            else:
                problems.append(f"{Place(self.name, reference)} is not in the registry")
        of = self._tags_by_digest()
        # A tag of the trash is written by retention alone, so the proxy lets its image go by digest only.
        trash = {tag for tag in here if tag.startswith(TRASH)}
        deletions = [Deletion(Place(self.name, tag), "", (tag,)) for tag in sorted((tags & self.lost) - trash)]
        tags -= self.lost
        digests |= {
            self.images[tag].root.digest: self.images[tag] for tag in (tags & trash if self.can_untag else tags)
        }
        deletions += [
            Deletion(Place(self.name, tag), self.images[tag].root.digest, (tag,))
            for tag in sorted(tags)
            if self.images[tag].root.digest not in digests
        ]
        # An index before its parts, which zot keeps as long as it has the index.
        deletions += [
            Deletion(Place(self.name, digest), digest, of.get(digest, ()))
            for digest in sorted(digests, key=lambda digest: (-len(digests[digest].manifests), digest))
        ]
        going = {tag for one in deletions for tag in one.tags}
        needing = self._needing(but=digests)
        for one in deletions:
            if not one.digest:
                continue
            if (others := sorted(set(one.tags) - tags)) and not all_tags:
                why = "" if one.digest in references else ", and this registry cannot delete a single tag"
                problems.append(
                    f"{one.digest} also has the tags {', '.join(others)}{why}; pass --all-tags to delete them too"
                )
            # A tag that goes alone leaves its image to the index; zot and Distribution 3 do so.
            if one.place.reference == one.digest:
                problems += [
                    f"{one.place} is part of {_left(tag, self.images[tag], going)}, which remains"
                    for tag in needing.get(one.digest, ())
                    if tag in going or not self._is_list_of(tag, one.digest)
                ]
        return deletions, problems

    def _needing(self, but: Container[str]) -> Mapping[str, list[str]]:
        """For each manifest the tags of the images that need it, *but* for images with these digests."""
        found: dict[str, list[str]] = {}
        for tag, image in self.images.items():
            for child in image.manifests if image.root.digest not in but else ():
                found.setdefault(child.digest, []).append(tag)
        return found

    def _tags_by_digest(self) -> Mapping[str, tuple[str, ...]]:
        found: dict[str, list[str]] = {}
        for tag in sorted(self.images):
            found.setdefault(self.images[tag].root.digest, []).append(tag)
        return {digest: tuple(tags) for digest, tags in found.items()}

    def _is_list_of(self, tag: str, digest: str) -> bool:
        """Whether *tag* is that of the list from which ``carry_out`` takes the manifest *digest* first."""
        if not REFERRERS_TAG.fullmatch(tag):
            return False
        with self.connect() as registry:
            content = retry(partial(registry.manifest, self.name, digest), PATIENCE)
        return referrers_tag(referrers.subject_of(content or b"")) == tag

    def _by_digest(self, digest: str) -> graph.Graph | None:
        with self.connect() as registry:
            return _image(self.name, registry, digest)


def _left(tag: str, image: graph.Graph, going: set[str]) -> Place:
    """What is left of *image* when the tags *going* are gone."""
    return Place(image.place.repository, image.root.digest if tag in going else tag)


def _images(connect: Connect, repository: str, tags: Sequence[str]) -> dict[str, graph.Graph]:
    """The images of those of *tags* that are there."""
    return {tag: one for tag, one in each(connect, partial(_image, repository), tags) if one is not None}


def _image(repository: str, registry: Api, reference: str) -> graph.Graph | None:
    """The image of a tag or digest; only its digest if its format is not known here, for it can be deleted as well."""
    place = Place(repository, reference)
    try:
        return retry(lambda: graph.read(registry, place), PATIENCE)
    except RegistryError as error:
        if error.code != "ImageInvalid":
            if error.status >= 500:  # for all of PATIENCE
                error.hint = "if `status` says that blocks are lost, run `recover` first: it deletes what is left"
            raise
        digest = retry(partial(registry.digest, repository, reference), PATIENCE)
        return graph.Graph(place, oci.Descriptor(media_type="", digest=digest, size=0), {}) if digest else None
