"""From a bundle into the registry: what is missing, several blobs at a time, and the proof that all can be read.

Nothing is unpacked: each blob is read from its place in the bundle's file. What the registry has is not sent again,
also after a run that was killed: a blob on its way is noted with the place where it goes on.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, Protocol, TypeVar

from kubeadm_registry import seeded
from kubeadm_registry.bundle import Bundle, oci
from kubeadm_registry.containerd.hosts import repository_prefix
from kubeadm_registry.errors import RegistryError
from kubeadm_registry.references import parse
from kubeadm_registry.registry import PIECE, Registry, Upload, patiently

#: Blobs at a time. More do not help on a network of servers, and a small registry has other work as well.
WORKERS = 6
#: Seconds that the registry may take nothing: longer than a writer needs to move.
PATIENCE = 120.0
#: A second place of an image: with an ``imageRepository`` of its own, ``VIP:5000/registry.k8s.io`` say, kubeadm asks
#: for CoreDNS without the part that the name has upstream (GetDNSImage in kubernetes/cmd/kubeadm/app/images/images.go).
ALSO = {"registry.k8s.io/coredns/coredns": "registry.k8s.io/coredns"}

Connect = Callable[[], AbstractContextManager[Registry]]
"""Opens a connection to the registry, for one thread."""
Thing = TypeVar("Thing")
Outcome = TypeVar("Outcome")


@dataclass(frozen=True, slots=True)
class Item:
    """An image of the bundle (*name*) and its place in the registry; manifests come after those that they need."""

    name: str
    repository: str
    reference: str
    root: oci.Descriptor
    manifests: tuple[oci.Descriptor, ...]
    blobs: tuple[oci.Descriptor, ...]


@dataclass(frozen=True, slots=True)
class Parcel:
    """A blob, the repositories that have it (*at*) and those that need it (*to*)."""

    blob: oci.Descriptor
    at: list[str]
    to: list[str]


class Progress(Protocol):
    """Told how many bytes of all that are missing the registry has. The number never falls."""

    def __call__(self, done: int, total: int) -> None:
        """*done* of *total* bytes."""


class Journal:
    """Where the uploads of a run that was killed go on: a small file, written whole at each change.

    A damaged one is as good as none: the blobs in it begin anew.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._places: dict[str, str] = {}
        with contextlib.suppress(OSError, ValueError):
            found = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(found, dict):
                self._places = {str(key): str(value) for key, value in found.items()}

    def place(self, key: str) -> str:
        """Where the upload *key* goes on; empty if it is not known."""
        with self._lock:
            return self._places.get(key, "")

    def note(self, key: str, place: str) -> None:
        """The upload *key* goes on at *place*, or (empty) is over."""
        with self._lock:
            if self._places.get(key, "") == place:
                return
            self._places[key] = place
            self._places = {key: place for key, place in self._places.items() if place}
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            new = self._path.with_name(f"{self._path.name}.new")
            with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
                json.dump(self._places, file)
            new.replace(self._path)


def plan(bundle: Bundle) -> tuple[Item, ...]:
    """The images of *bundle* with all that they consist of, at each of their places. Raises BundleError."""
    second = {place: root for name, root in bundle.images.items() for place in _second_places(name)}
    wanted = {**second, **bundle.images}
    return tuple(_item(bundle, name, root) for name, root in sorted(wanted.items()))


def _second_places(name: str) -> Iterator[str]:
    for path, other in ALSO.items():
        if name.startswith((f"{path}:", f"{path}@")):
            yield other + name[len(path) :]


def _item(bundle: Bundle, name: str, root: oci.Descriptor) -> Item:
    reference = parse(name)
    assert reference is not None  # noqa: S101  a bundle has no other names
    needed = list(bundle.layout.reachable(root))
    for one in needed:
        bundle.layout.expect(one)  # nothing is pushed of a bundle that lacks something
    manifests = tuple(one for one in needed if one.media_type in oci.INDEXES | oci.MANIFESTS)
    blobs = tuple(one for one in needed if one not in manifests)
    repository = f"{repository_prefix(reference.host)}/{reference.path}"
    return Item(name, repository, reference.tag or reference.digest, root, manifests, blobs)


class Seeder:
    """One run of seeding. *connect* leads to the registry's writer; *progress* is called from several threads."""

    def __init__(
        self, bundle: Bundle, connect: Connect, journal: Journal, *, workers: int = WORKERS,
        progress: Progress = lambda done, total: None, patience: float = PATIENCE, piece: int = PIECE,
        allow_older: bool = False,
    ) -> None:  # fmt: skip
        self._bundle = bundle
        self._connect = connect
        self._journal = journal
        self._workers = workers
        self._progress = progress
        self._patience = patience
        self._piece = piece
        self._allow_older = allow_older
        self._lock = threading.Lock()
        self._taken: dict[str, int] = {}
        self._total = self._sent = 0

    def run(self, items: Sequence[Item]) -> int:
        """Push what is missing of *items*; returns how many bytes of blobs went out. Raises RegistryError, BundleError.

        All blobs first, then the manifests: an image is never there without what it needs. A delta whose base is not
        there, or a bundle that comes before what is there, is refused before anything is pushed.
        """
        line = self._bundle.layout.lineage
        with self._connect() as registry:
            record = patiently(lambda: seeded.read(registry, line), self._patience)
        if not self._allow_older:
            seeded.judge(line, record)
        missing = [item for item, there in self._each(self._is_there, items) if not there]
        needed = {(blob.digest, item.repository): blob for item in missing for blob in item.blobs}
        parcels: dict[str, Parcel] = {}
        for (digest, repository), there in self._each(self._has, list(needed)):
            parcel = parcels.setdefault(digest, Parcel(needed[digest, repository], [], []))
            (parcel.at if there else parcel.to).append(repository)
        work = [parcel for parcel in parcels.values() if parcel.to]
        self._find([parcel for parcel in work if parcel.blob.digest in line.left_out and not parcel.at])
        self._total = sum(parcel.blob.size * len(parcel.to) for parcel in work)
        self._progress(0, self._total)
        # The large ones first, so that none of them is alone at the end.
        list(self._each(self._send, sorted(work, key=lambda parcel: -parcel.blob.size)))
        list(self._each(self._manifests, missing))
        if record is None or record.index != line.index:
            with self._connect() as registry:
                patiently(lambda: seeded.write(registry, line), self._patience)
        return self._sent

    def _find(self, parcels: Sequence[Parcel]) -> None:
        """Where the registry has what a delta leaves out, if not where it is needed. Raises BundleError."""
        line = self._bundle.layout.lineage

        def look(registry: Registry, parcel: Parcel) -> str:
            return patiently(lambda: seeded.home(registry, line, parcel.blob.digest, parcel.to), self._patience)

        lacking = []
        for parcel, home in self._each(look, parcels):
            parcel.at.extend([home] if home else [])
            lacking.extend([] if home else [parcel.blob.digest])
        if lacking:
            raise seeded.lacking(line, lacking)

    def _each(
        self, work: Callable[[Registry, Thing], Outcome], what: Sequence[Thing]
    ) -> Iterator[tuple[Thing, Outcome]]:
        return each(self._connect, work, what, self._workers)

    def _is_there(self, registry: Registry, item: Item) -> bool:
        return patiently(lambda: registry.digest(item.repository, item.reference), self._patience) == item.root.digest

    def _has(self, registry: Registry, key: tuple[str, str]) -> bool:
        digest, repository = key
        return patiently(lambda: registry.has_blob(repository, digest), self._patience)

    def _send(self, registry: Registry, parcel: Parcel) -> None:
        """A blob into each repository that lacks it: sent once, then mounted where the registry can."""
        blob, home = parcel.blob, parcel.at[0] if parcel.at else ""
        for repository in parcel.to:
            key = f"{repository}@{blob.digest}"
            place = self._journal.place(key)
            upload = Upload(
                registry, repository, blob.digest, blob.size,
                location=place, patience=self._patience, piece=self._piece,
            )  # fmt: skip
            upload.progress = partial(self._took, key, upload)
            try:
                upload.run(partial(self._open, registry, blob, home), mount_from=home)
            except RegistryError as error:
                raise seeded.blame(self._bundle, blob, error) from error
            self._journal.note(key, "")
            with self._lock:
                self._sent += upload.sent
            home = home or repository

    def _open(self, registry: Registry, blob: oci.Descriptor, home: str, offset: int) -> BinaryIO:
        """A blob from byte *offset* on, a piece at least: of the bundle, or of *home* if the bundle leaves it out."""
        if self._bundle.layout.has(blob.digest):
            return self._bundle.layout.blob(blob, offset=offset)
        return seeded.kept(registry, home, blob.digest, offset, self._piece)

    def _took(self, key: str, upload: Upload, taken: int) -> None:
        self._journal.note(key, upload.location)
        with self._lock:
            # An upload that begins anew has lost bytes; what was told stays told.
            self._taken[key] = max(self._taken.get(key, 0), taken)
            self._progress(min(sum(self._taken.values()), self._total), self._total)

    def _manifests(self, registry: Registry, item: Item) -> None:
        for descriptor in item.manifests:
            reference = item.reference if descriptor.digest == item.root.digest else descriptor.digest
            content = self._bundle.layout.read(descriptor)
            push = partial(registry.push_manifest, item.repository, reference, content, descriptor.media_type)
            patiently(push, self._patience)


def absent(registry: Registry, item: Item) -> str | None:
    """None if all of *item* can be read at *registry*; else what cannot. Raises RegistryError.

    Every manifest is read and compared with its digest, and of every blob the last byte is read: that takes the data
    of the storage, not only its word.
    """
    if registry.digest(item.repository, item.reference) != item.root.digest:
        return f"{item.reference} is not {item.root.digest}"
    for manifest in item.manifests:
        if registry.manifest(item.repository, manifest.digest) is None:
            return f"manifest {manifest.digest} is missing"
    for blob in item.blobs:
        last = registry.piece(item.repository, blob.digest, max(0, blob.size - 1), 1)
        if last is None or (blob.size and not last):
            return f"blob {blob.digest} is missing"
    return None


def prove(connect: Connect, items: Sequence[Item], workers: int = WORKERS) -> dict[str, str]:
    """The images that cannot be read where *connect* leads, and what of them. RegistryError: nobody answers there."""
    with connect() as registry:
        patiently(registry.ping, seconds=10)

    def look(registry: Registry, item: Item) -> str | None:
        try:
            return patiently(lambda: absent(registry, item), seconds=10)
        except RegistryError as error:
            return error.message

    found = each(connect, look, items, workers)
    return {item.name: flaw for item, flaw in found if flaw is not None}


def each(
    connect: Connect, work: Callable[[Registry, Thing], Outcome], what: Sequence[Thing], workers: int
) -> Iterator[tuple[Thing, Outcome]]:
    """Do *work* with each of *what*, *workers* at a time, each thread with a connection of its own."""
    local = threading.local()
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(max_workers=workers) as pool:
        guard = threading.Lock()

        def one(thing: Thing) -> Outcome:
            if not hasattr(local, "registry"):
                with guard:
                    local.registry = stack.enter_context(connect())
            return work(local.registry, thing)

        try:
            yield from zip(what, pool.map(one, what), strict=True)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # what has begun ends, and no more begins
            raise
