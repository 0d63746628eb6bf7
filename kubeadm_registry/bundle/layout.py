"""An OCI image layout, in one tar file or in a directory, read in any order without unpacking."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Protocol, Self, cast

from kubeadm_registry.bundle import archive, files, versions
from kubeadm_registry.bundle.failures import base_missing, incomplete, refused
from kubeadm_registry.bundle.lineage import Lineage
from kubeadm_registry.errors import BundleError, damaged
from kubeadm_registry.oci import descriptors as oci

#: What was met on the way through manifests: by digest, the size and, if it is a manifest, the type.
Seen = dict[str, tuple[int, str]]


class Store(Protocol):
    """Files by name, for reading: the two forms of a layout."""

    sizes: Mapping[str, int]

    def open(self, name: str) -> BinaryIO:
        """Open the file *name*, which is in ``sizes``."""

    def close(self) -> None:
        """Give up what is open."""


class ArchiveStore:
    """A layout in one uncompressed tar file."""

    def __init__(self, path: Path) -> None:
        with ExitStack() as stack:
            self._file = stack.enter_context(files.regular(path))
            length = os.fstat(self._file.fileno()).st_size
            self._members = {}
            for member in archive.members(self._file):
                if member.offset + member.size > length:
                    raise damaged(f"the archive is truncated within {member.name}")
                if not member.directory:
                    self._members[member.name] = member
            stack.pop_all()
        self.sizes: Mapping[str, int] = {name: member.size for name, member in self._members.items()}

    def open(self, name: str) -> BinaryIO:
        """Open the file *name*; the streams of one archive may be read by several threads."""
        member = self._members[name]
        window = archive.Window(self._file, member.offset, member.size)
        return cast(BinaryIO, io.BufferedReader(window, 256 * 1024))

    def close(self) -> None:
        """Close the archive."""
        self._file.close()


class DirectoryStore:
    """A layout in a directory. Links in it are refused: they could lead anywhere. Of another directory nothing is read.

    Raises OSError for a part of it that cannot be listed: what is in there would count as missing.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        sizes = {}
        for folder, folders, names in files.walk(path) if (path / oci.LAYOUT_FILE).exists() else ():
            for name in [*folders, *names]:
                file = Path(folder, name)
                if file.is_symlink() or not (file.is_dir() or file.is_file()):
                    raise damaged(
                        f"{file} is neither a file nor a directory",
                        hint="copy the directory with `cp -rL`, which puts files in the place of links",
                    )
                if file.is_file():
                    sizes[archive.safe_name(file.relative_to(path).as_posix())] = file.stat().st_size
        self.sizes: Mapping[str, int] = sizes

    def open(self, name: str) -> BinaryIO:
        """Open the file *name*."""
        return (self._path / name).open("rb")

    def close(self) -> None:
        """Do nothing: no file is kept open."""


class PiecesStore:
    """A layout that is put together from *pieces*: by name, the size in bytes and a way to open it."""

    def __init__(self, pieces: Mapping[str, tuple[int, Callable[[], BinaryIO]]]) -> None:
        self._pieces = pieces
        self.sizes: Mapping[str, int] = {name: size for name, (size, _) in pieces.items()}

    @classmethod
    def of(
        cls, entries: Sequence[oci.Descriptor], manifests: Iterable[bytes],
        blobs: Mapping[str, tuple[int, Callable[[], BinaryIO]]],
    ) -> Self:  # fmt: skip
        """The layout whose index has *entries*, with the contents *manifests*, and *blobs* by digest."""
        index = oci.Index(manifests=tuple(entries)).to_json()
        texts = {oci.LAYOUT_FILE: oci.LAYOUT, oci.INDEX_FILE: index}
        texts |= {oci.blob_name(oci.digest_of(content)): content for content in manifests}
        pieces = {oci.blob_name(digest): piece for digest, piece in blobs.items()}
        return cls(pieces | {name: (len(text), partial(io.BytesIO, text)) for name, text in texts.items()})

    def open(self, name: str) -> BinaryIO:
        """Open the piece *name*."""
        return self._pieces[name][1]()

    def close(self) -> None:
        """Nothing is held: each piece is opened by itself."""


class Layout:
    """An OCI image layout: its index, its manifests and its blobs. Close it, or use it in a ``with`` statement.

    A blob's content is compared with its digest when it is read to its end; a manifest's always. *flaw* makes the error
    for one that differs.
    """

    def __init__(self, store: Store, where: str, *, flaw: Callable[[str], BundleError] = damaged) -> None:
        self.store = store
        self.where = where
        self._flaw = flaw
        self._asked: set[tuple[str, int, str]] = set()
        self._children: dict[tuple[str, int, str], tuple[oci.Descriptor, ...]] = {}
        if oci.LAYOUT_FILE not in store.sizes:
            raise refused(
                f"{where} is not an OCI image layout: it has no file {oci.LAYOUT_FILE}",
                hint="create one, for example with `skopeo copy docker-archive:FILE oci-archive:FILE:NAME`",
            )
        if oci.INDEX_FILE not in store.sizes:
            raise incomplete(f"{where} has no {oci.INDEX_FILE}")
        self.index_bytes = self.file(oci.INDEX_FILE, oci.MAX_INDEX)
        self.index, self.version = versions.read(self.file(oci.LAYOUT_FILE, 4096), self.index_bytes, where)
        self.lineage = Lineage.of(self.index, self.index_bytes, where)
        if held := next(filter(self.has, self.lineage.left_out), ""):
            raise damaged(f"{where} contains {held}, which its index lists as omitted")

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open the layout at *path*, a tar file or a directory; raises BundleError if it is none or is damaged."""
        try:
            store: Store = DirectoryStore(path) if path.is_dir() else ArchiveStore(path)
        except OSError as error:
            raise BundleError(
                f"cannot read {error.filename or path}: {error.strerror}",
                code="BundleUnreadable",
                hint="check the path and its mode",
            ) from error
        except BundleError as error:
            raise BundleError(f"{path}: {error.message}", code=error.code, hint=error.hint) from error
        try:
            return cls(store, str(path))
        except BaseException:
            store.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close what is open; streams of this layout cannot be read after it."""
        self.store.close()

    def file(self, name: str, limit: int) -> bytes:
        """Return the small file *name*, which is there. Raises BundleError if it has more than *limit* bytes."""
        if self.store.sizes[name] > limit:
            raise damaged(f"{self.where}: {name} has {self.store.sizes[name]} bytes, more than {limit}")
        with self.store.open(name) as file:
            return file.read()

    def has(self, digest: str) -> bool:
        """Say whether the layout holds the blob *digest*, without reading it."""
        return oci.blob_name(digest) in self.store.sizes

    def expect(self, descriptor: oci.Descriptor) -> None:
        """Look whether the blob is there and has the right size, or is left out by a delta; raises BundleError if not.

        Nothing is read.
        """
        size = self.store.sizes.get(oci.blob_name(descriptor.digest))
        if size is None and descriptor.digest not in self.lineage.left_out:
            raise incomplete(f"{self.where} does not hold {descriptor.digest}, which it refers to")
        if size is not None and size != descriptor.size:
            raise damaged(f"{self.where}: {descriptor.digest} has {size} bytes instead of {descriptor.size}")

    def blob(self, descriptor: oci.Descriptor, *, offset: int = 0, whole: bool = True) -> BinaryIO:
        """Open the blob that *descriptor* names, from byte *offset* on.

        Raises BundleError if it is missing or has another size; a stream from offset 0 raises it as well, before it
        gives out the last bytes, when the content does not have the digest. That is of no use, and left out, when the
        stream is not read to its end (not *whole*).
        """
        self.expect(descriptor)
        if not self.has(descriptor.digest):
            raise base_missing(
                f"{self.where} omits {descriptor.digest}, which {self.lineage.left_out[descriptor.digest]} has "
                f"in the bundle {self.lineage.base}",
                hint="this is a delta; apply its base bundle first",
            )
        file = self.store.open(oci.blob_name(descriptor.digest))
        if offset or not whole:
            file.seek(offset)
            return file
        return cast(BinaryIO, io.BufferedReader(_Verified(file, descriptor, self._different), 256 * 1024))

    def _different(self, digest: str) -> BundleError:
        return self._flaw(f"{self.where}: the content of {digest} does not match its digest")

    def read(self, descriptor: oci.Descriptor) -> bytes:
        """Return the content of a manifest, an index or another small blob, 4 MiB at most, compared with its digest."""
        if descriptor.size > oci.MAX_MANIFEST:
            raise damaged(f"{self.where}: manifest {descriptor.digest} has {descriptor.size} bytes")
        with self.blob(descriptor) as file:
            return file.read()

    def manifest(self, descriptor: oci.Descriptor) -> oci.Manifest:
        """Return the manifest that *descriptor* names."""
        return oci.parse(oci.Manifest, self.read(descriptor), f"{self.where}: manifest {descriptor.digest}")

    def children(self, descriptor: oci.Descriptor) -> tuple[oci.Descriptor, ...]:
        """Return what the manifest or index named by *descriptor* refers to; nothing for any other blob.

        What is asked for again is kept, for many images may have one manifest. Raises BundleError for one that is of
        another type than its descriptor says, an index of anything but manifests, and a manifest that has manifests
        for layers.
        """
        key = (descriptor.digest, descriptor.size, descriptor.media_type)
        if key not in self._children:
            found = self._read_children(descriptor)
            if key not in self._asked:  # most are asked for once, and a large bundle has many
                self._asked.add(key)
                return found
            self._children[key] = found
        return self._children[key]

    def _read_children(self, descriptor: oci.Descriptor) -> tuple[oci.Descriptor, ...]:
        if descriptor.media_type not in oci.TREES:
            return ()
        return oci.children(descriptor.media_type, self.read(descriptor), f"{self.where}: {descriptor.digest}")

    def reachable(self, *roots: oci.Descriptor, seen: Seen | None = None) -> Iterator[oci.Descriptor]:
        """Give every blob that *roots* need, children before their parents, each once: the order to send them in.

        What earlier calls with the same *seen* gave is not given again. Raises BundleError when two descriptors
        disagree about a blob, and for indexes that lie too deep.
        """
        seen = {} if seen is None else seen
        stack = [(root, 0) for root in reversed(roots)]
        while stack:
            descriptor, depth = stack.pop()
            if depth < 0:
                yield descriptor
                continue
            what = (descriptor.size, descriptor.media_type if descriptor.media_type in oci.TREES else "")
            if descriptor.digest in seen:
                if seen[descriptor.digest] != what:
                    raise damaged(f"{self.where}: conflicting descriptors of {descriptor.digest}")
                continue
            seen[descriptor.digest] = what
            if depth > oci.MAX_DEPTH:
                raise damaged(f"{self.where}: manifests and indexes are nested more than {oci.MAX_DEPTH} deep")
            stack.append((descriptor, -1))
            stack.extend((child, depth + 1) for child in reversed(self.children(descriptor)))


class _Verified(io.RawIOBase):
    """A stream that does not give out the last part of a blob whose content has not the blob's digest."""

    def __init__(
        self, file: BinaryIO, descriptor: oci.Descriptor, different: Callable[[str], BundleError]
    ) -> None:  # fmt: skip
        super().__init__()
        self._file = file
        self._digest = descriptor.digest
        self._left = descriptor.size
        self._different = different
        self._hash = hashlib.sha256()

    def readable(self) -> bool:
        """Say that this can be read."""
        return True

    def readinto(self, buffer: object, /) -> int:
        """Fill *buffer*; 0 at the end. Raises BundleError before the last bytes of content that is not the blob's."""
        view = memoryview(buffer).cast("B")  # type: ignore[arg-type]
        content = self._file.read(min(len(view), self._left))
        self._hash.update(content)
        self._left -= len(content)
        if (not self._left or not content) and "sha256:" + self._hash.hexdigest() != self._digest:
            raise self._different(self._digest)
        view[: len(content)] = content
        return len(content)

    def close(self) -> None:
        """Close the stream beneath as well."""
        if not self.closed:
            self._file.close()
        super().close()
