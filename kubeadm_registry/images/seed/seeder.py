"""Pushes what the registry lacks of a bundle's images, several blobs at a time."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import BinaryIO, Protocol

import httpx

from kubeadm_registry.bundle import Bundle
from kubeadm_registry.bundle.lineage import Lineage
from kubeadm_registry.errors import Error, RegistryError
from kubeadm_registry.images import absence, brought, referrers, seeded
from kubeadm_registry.images.journal import Journal
from kubeadm_registry.images.pool import PATIENCE, SMALL_FOR_LARGE, WORKERS, Connect, WorkerPool, few
from kubeadm_registry.images.seed.contents import Item
from kubeadm_registry.images.seed.proof import flaw, is_signed_further
from kubeadm_registry.oci import descriptors as oci
from kubeadm_registry.printable import counted
from kubeadm_registry.registry import PIECE, Api, Limit, Upload, retry


@dataclass(slots=True)
class BlobUpload:
    """A blob, a repository to mount it from (*source*; empty if none is known) and those that need it, each once
    (*targets*)."""

    blob: oci.Descriptor
    source: str
    targets: dict[str, None]


class Progress(Protocol):
    """Told how many bytes of the images that are missing the registry has. The number never falls."""

    def __call__(self, done: int, total: int) -> None:
        """*done* of *total* bytes."""


class Seeder:
    """One run of seeding. *connect* leads to the registry's writer; *progress* is called from several threads.

    Without a *record* the registry does not learn which bundle it was, and older ones are not refused. The images
    *anew*, by name, are pushed although their tags are there: the registry is asked for each of their blobs. *below* is
    as for ``plan``, and the same for all bundles of a line.
    When *stop* is set, what is in hand ends, where it goes on is noted, and nothing more begins.
    """

    def __init__(
        self, bundle: Bundle, connect: Connect, journal: Journal, *, workers: int = WORKERS,
        progress: Progress = lambda done, total: None, patience: float = PATIENCE, piece: int = PIECE,
        allow_older: bool = False, record: bool = True, limit: Limit | None = None, stop: threading.Event | None = None,
        anew: Collection[str] = (), below: str = "",
    ) -> None:  # fmt: skip
        self._bundle = bundle
        self._connect = connect
        self._journal = journal
        self._workers = workers
        self._streams = threading.BoundedSemaphore(workers)
        self._progress = progress
        self._patience = patience
        self._piece = piece
        self._allow_older = allow_older
        self._keeps_record = record
        self._limit = limit
        self._stop = stop or threading.Event()
        self._anew = frozenset(anew)
        self._below = below
        self._lock = threading.Lock()
        self._taken: dict[str, int] = {}
        self._known: set[str] = set()
        self._proven = False
        self._total = self._done = self._sent = 0
        self.known: set[str] = set()
        """The names of the images that an earlier run has proven, and that are there still."""
        self.read: set[str] = set()
        """Those of them that this run has read, every part: where nothing was missing, which takes time to push."""

    def run(self, items: Sequence[Item]) -> int:
        """Push what is missing of *items*; returns how many bytes of blobs went out.

        Raises RegistryError, BundleError, and Error (SeedStopped, SeedRecordDamaged, NewerFormat).

        All blobs first, then the manifests: an image is never there without what it needs. A delta whose base is not
        there, or a bundle that comes before what is there, is refused before anything is pushed.
        """
        line = self._bundle.layout.lineage
        with self._journal, WorkerPool(self._connect, self._workers * SMALL_FOR_LARGE) as pool:
            record = self._record(pool, line) if self._keeps_record else None
            is_new = self._keeps_record and (record is None or record.index != line.index)
            if is_new:
                seeded.require_writer(record)
            self._proven = self._journal.proven(line.index)
            with WorkerPool(self._connect, few(self._workers, len(items))) as looking:
                found = looking.each(self._is_there, items)
            missing = [item for item, there in found if not there]
            if self._proven:
                self.known = {item.name for item, there in found if there}
            if missing:  # whoever is killed from here on has proven nothing
                self._journal.prove(line.index, proven=False)
                self.read.clear()
            homes = {blob.digest: item.repository for item, there in found if there for blob in item.blobs}
            repositories = pool.each(self._is_known, {item.repository for item in missing})
            self._known = {repository for repository, known in repositories if known}
            uploads: dict[str, BlobUpload] = {}
            for item in missing:
                for blob in item.blobs:
                    upload = uploads.setdefault(blob.digest, BlobUpload(blob, homes.get(blob.digest, ""), {}))
                    upload.targets[item.repository] = None
            self._find(pool, [one for one in uploads.values() if one.blob.digest in line.left_out and not one.source])
            self._total = sum(upload.blob.size * len(upload.targets) for upload in uploads.values())
            self._progress(0, self._total)
            # The large ones first, so that none of them is alone at the end.
            pool.each(self._send, sorted(uploads.values(), key=lambda upload: -upload.blob.size))
            refused = self._push_manifests(pool, missing)
            if refused:
                raise _not_accepted(refused, len(items))
            if is_new:
                pool.each(partial(self._note, record=record), [line])
            if self._keeps_record:
                pool.each(self._note_images, [line])
        return self._sent

    def _record(self, pool: WorkerPool, line: Lineage) -> seeded.Record | None:
        """What was seeded of *line* before. Raises BundleError where the bundle must not come now."""

        def read(registry: Api, line: Lineage) -> seeded.Record | None:
            try:
                return retry(lambda: seeded.read(registry, line), self._patience)
            except Error as error:
                if error.code in ("SeedRecordDamaged", absence.NOT_WHOLE) and self._allow_older:
                    return None
                raise

        [(_, record)] = pool.each(read, [line])
        if not self._allow_older:
            seeded.judge(line, record)
        return record

    def _note(self, registry: Api, line: Lineage, record: seeded.Record | None) -> None:
        retry(lambda: seeded.write(registry, line, record), self._patience)

    def _note_images(self, registry: Api, line: Lineage) -> None:
        if not retry(lambda: brought.is_noted(registry, line), self._patience):
            images = {name: entry.digest for name, entry in self._bundle.images.items()}
            retry(lambda: brought.write(registry, line, images), self._patience)

    def _find(self, pool: WorkerPool, uploads: Sequence[BlobUpload]) -> None:
        """Where the registry has what a delta leaves out. Raises BundleError."""
        line = self._bundle.layout.lineage

        def look(registry: Api, upload: BlobUpload) -> str:
            home = partial(seeded.home, registry, line, upload.blob.digest, [*upload.targets], self._below)
            return retry(home, self._patience)

        for upload, home in pool.each(look, uploads):
            upload.source = home
            upload.targets.pop(home, None)
        if lacking := [upload.blob.digest for upload in uploads if not upload.source]:
            raise seeded.lacking(line, lacking)

    def _is_there(self, registry: Api, item: Item) -> bool:
        """Whether the registry has *item*, and lists what of it refers to something else.

        What an earlier run has proven is read at once: its name alone would be looked for to read it afterwards.
        Signatures that were added to those of the bundle would be lost if the bundle's tag took their place.
        """
        if item.name in self._anew:
            return False

        def is_listed() -> bool:
            return all(
                referrers.is_noted(registry, item.repository, manifest, self._bundle.layout.read(manifest))
                for manifest in item.manifests
            )

        def look() -> bool:
            if registry.digest(item.repository, item.reference) != item.root.digest:
                return is_signed_further(registry, item)
            return is_listed()

        if self._proven and flaw(registry, item) is None:
            self.read.add(item.name)
            if retry(is_listed, self._patience):
                return True
        return retry(look, self._patience)

    def _is_known(self, registry: Api, repository: str) -> bool:
        """Whether *repository* may have blobs, of an earlier version or a run that was killed."""
        return retry(lambda: registry.has_repository(repository), self._patience)

    def _send(self, registry: Api, upload: BlobUpload) -> None:
        """A blob into each repository that lacks it: sent once, then mounted where the registry can."""
        blob, home = upload.blob, upload.source
        for repository in upload.targets:
            if not self._has(registry, repository, blob):
                self._upload(registry, repository, blob, home)
            home = home or repository

    def _has(self, registry: Api, repository: str, blob: oci.Descriptor) -> bool:
        """Whether the blob is in *repository*; one that is new has none, and is not asked."""
        if repository not in self._known:
            return False
        key = f"{repository}@{blob.digest}"
        there = retry(lambda: registry.has_blob(repository, blob.digest), self._patience)
        if there:
            self._journal.note(key, "")
            self._tell(key, blob.size)
        return there

    def _upload(self, registry: Api, repository: str, blob: oci.Descriptor, home: str) -> None:
        """Send a blob, or mount it from *home*.

        To mount it from the repository itself asks whether it is there and begins the upload if not, in one request, of
        a registry that mounts: Distribution says that a repository without a tag is none.
        """
        key = f"{repository}@{blob.digest}"
        upload = Upload(
            registry, repository, blob.digest, blob.size,
            location=self._journal.place(key), patience=self._patience, piece=self._piece, limit=self._limit,
        )  # fmt: skip
        upload.progress = partial(self._took, key, upload)
        # The registry compares the digest of one that goes in pieces; here no piece tells.
        source = partial(self._open, registry, blob, home, not upload.in_pieces)
        with self._streams if upload.in_pieces else contextlib.nullcontext():
            try:
                upload.run(source, mount_from=home or repository)
            except RegistryError as error:
                raise seeded.blame(self._bundle, blob, error) from error
        self._journal.note(key, "")
        with self._lock:
            self._sent += upload.sent

    def _open(self, registry: Api, blob: oci.Descriptor, home: str, whole: bool, offset: int) -> BinaryIO:
        """A blob from byte *offset* on, a piece at least: of the bundle, or of *home* if the bundle leaves it out."""
        if self._bundle.layout.has(blob.digest):
            return self._bundle.layout.blob(blob, offset=offset, whole=whole)
        return seeded.kept(registry, home, blob.digest, offset, self._piece)

    def _took(self, key: str, upload: Upload, taken: int) -> None:
        if upload.in_pieces:
            self._journal.note(key, upload.location)
        self._tell(key, taken)

    def _tell(self, key: str, taken: int) -> None:
        """The registry has *taken* bytes of the upload *key*. Between two requests; may raise SeedStopped."""
        self._go_on()
        with self._lock:
            # An upload that begins anew has lost bytes; what was told stays told.
            best = self._taken.get(key, 0)
            self._taken[key] = max(best, taken)
            self._done += self._taken[key] - best
            self._progress(self._done, self._total)

    def _go_on(self) -> None:
        if self._stop.is_set():
            raise Error(
                "seed was stopped before all images were pushed", code="SeedStopped",
                hint="run the command again; it resumes where it stopped",
            )  # fmt: skip

    def _push_manifests(self, pool: WorkerPool, missing: Sequence[Item]) -> list[RegistryError]:
        """Push the manifests of the *missing* items; for each that the registry refuses one of, an error.

        Those that need no other one go side by side, also where an index has hundreds. Then each item has the others
        pushed in their order: an index after its parts, and the root, whose tag makes the image one, at the end.
        """
        first = [(item, one) for item in missing for one in self._alone(item)]
        pushed = {(item.name, one.digest) for item, one in first}
        refused = {item.name: error for (item, _), error in pool.each(self._manifest, first) if error}
        rest = [item for item in missing if item.name not in refused]

        def others(registry: Api, item: Item) -> RegistryError | None:
            left = (one for one in item.manifests if (item.name, one.digest) not in pushed)
            return next(filter(None, (self._manifest(registry, (item, one)) for one in left)), None)

        refused |= {item.name: error for item, error in pool.each(others, rest) if error}
        return list(refused.values())

    def _alone(self, item: Item) -> list[oci.Descriptor]:
        """The manifests of *item* below its root that need no other one there, nor are noted at another one."""
        return [
            one for one in item.manifests
            if one.digest != item.root.digest and one.media_type in oci.MANIFESTS
            and not referrers.subject_of(self._bundle.layout.read(one))
        ]  # fmt: skip

    def _manifest(self, registry: Api, what: tuple[Item, oci.Descriptor]) -> RegistryError | None:
        """Push a manifest of an item; the error if the registry refuses it, which says nothing of other items."""
        self._go_on()
        item, descriptor = what
        reference = item.reference if descriptor.digest == item.root.digest else descriptor.digest
        content = self._bundle.layout.read(descriptor)
        push = partial(referrers.push, registry, item.repository, reference, descriptor, content)
        try:
            retry(push, self._patience)
        except RegistryError as error:
            # It has taken the blobs, so who may push nothing is known by now.
            if error.temporary or not httpx.codes.is_client_error(error.status):
                raise
            return RegistryError(f"{item.name}: {error.message}", status=error.status, code=error.code, hint=error.hint)
        return None


def _not_accepted(refused: Sequence[RegistryError], count: int) -> RegistryError:
    """What to tell and to do about images, of *count*, of which the registry refuses a manifest.

    zot checks more than a bundle must: it takes no list that is null, and no type without a slash. And it takes no
    index in place of one that it has lost. Others have tags that nobody may replace: 412 of Harbor, 403 of GitLab.
    """
    first = refused[0]
    others = ", and has all others" if count > len(refused) else ""
    lines = [
        f"the registry does not accept {len(refused)} of {counted(count, 'image')}{others}:",
        *(f"  {error.message}" for error in refused),
    ]
    hint = (
        "run seed again, in case a blob was deleted meanwhile; if the same images are listed again and `images check` "
        "reports one of this name, run `recover`; otherwise create the bundle without it or have it built and pushed "
        "again with a current tool"
    )
    if first.status != httpx.codes.BAD_REQUEST:
        hint = (
            first.hint or "the registry may not let anybody replace a tag, or have a quota: change that, or omit these"
        )
    return RegistryError("\n".join(lines), code=first.code, status=first.status, hint=hint)
