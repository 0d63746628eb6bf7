"""Images as ``docker save``, ``podman save`` and ``ctr``'s older kin write them, turned into OCI's form.

Source: https://github.com/moby/docker-image-spec, "Combined Image JSON + Filesystem Changeset Format" (v1.2). Layers
lie in such an archive as plain tar; they are compressed here, since they cross networks from now on.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import threading
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar, cast

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from kubeadm_registry.bundle import archive, temporary
from kubeadm_registry.bundle.failures import cache_damaged, of_inputs, refused
from kubeadm_registry.bundle.layout import Layout, PiecesStore
from kubeadm_registry.bundle.make.cache import Blobs, Stopped
from kubeadm_registry.bundle.make.context import BuildContext
from kubeadm_registry.errors import BundleError, damaged
from kubeadm_registry.oci import descriptors as oci
from kubeadm_registry.oci.references import full
from kubeadm_registry.printable import counted

MANIFEST_FILE = "manifest.json"
_LONGEST = 16 * 2**20
_MAGIC = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"
#: Compression does the most at this level for its time, and every release of zlib writes the same bytes for it.
_LEVEL = 6


class _Row(BaseModel):
    model_config = ConfigDict(frozen=True)

    config: str = Field(alias="Config")
    names: tuple[str, ...] | None = Field(None, alias="RepoTags")
    layers: tuple[str, ...] | None = Field(None, alias="Layers")


class _RootFs(BaseModel):
    diff_ids: tuple[oci.Digest, ...] | None = None


class _Config(BaseModel):
    rootfs: _RootFs


_ROWS = TypeAdapter(tuple[_Row, ...])
_CONFIG = TypeAdapter(_Config)
Parsed = TypeVar("Parsed")


def is_one(path: Path) -> bool:
    """Whether the file *path* is such an archive, and not an OCI layout as well. Raises BundleError if it is no tar."""
    with path.open("rb") as file, _named(path):
        names = {member.name for member in archive.members(file, links=True)}
    return MANIFEST_FILE in names and oci.LAYOUT_FILE not in names


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Within it errors begin with *path*, for one of several archives, and what is damaged is no bundle yet."""
    try:
        with of_inputs():
            yield
    except BundleError as error:
        raise BundleError(f"{path}: {error.message}", code=error.code, hint=error.hint) from error


@dataclass(frozen=True, slots=True)
class FromDockerArchive:
    """The images of such an archive, with a *name* as for ``images_in``."""

    path: Path
    name: str = ""

    def open(self, context: BuildContext, platforms: Sequence[oci.Platform]) -> Layout:
        """Compress the layers into the cache, unless they are there."""
        with _named(self.path):
            return self._open(context)

    def _open(self, context: BuildContext) -> Layout:
        blobs = Blobs(context.cache, thorough=context.thorough)
        with self.path.open("rb") as file, ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            content = _Content(file)
            images = list(content.images())
            plain = {file: digest for image in images for file, digest in image.layers}
            context.progress(f"compressing {counted(len(plain), 'layer')} of {self.path}")
            stop = threading.Event()
            packed = pool.map(lambda file: _layer(content, file, plain[file], blobs, stop), plain)
            try:
                layers = dict(zip(plain, packed, strict=True))
            finally:
                stop.set()  # the pool waits for its threads, and Ctrl-C is not to wait for gigabytes
        entries, texts = [], []
        for image in images:
            config = oci.Descriptor(media_type=oci.CONFIG, digest=oci.digest_of(image.config), size=len(image.config))
            manifest = oci.Manifest(config=config, layers=tuple(layers[file] for file, _ in image.layers)).to_json()
            texts += [image.config, manifest]
            root = oci.Descriptor(media_type=oci.MANIFEST, digest=oci.digest_of(manifest), size=len(manifest))
            for name in self._names(image):
                entries.append(root.model_copy(update={"annotations": {oci.REFERENCE_NAME: name}}))
        pieces = {layer.digest: (layer.size, blobs.opener(layer.digest)) for layer in layers.values()}
        return Layout(PiecesStore.of(entries, texts, pieces), str(self.path), flaw=cache_damaged)

    def _names(self, image: _Image) -> tuple[str, ...]:
        if not image.names and not self.name:
            raise refused(
                "an image has no name",
                hint=f"pass its name, as in NAME:TAG={self.path}, or save it by name, as in `docker save NAME:TAG`",
            )
        return tuple(full(name) or name for name in image.names) or ("",)


@dataclass(frozen=True, slots=True)
class _Image:
    """An image of the archive: its names, its configuration, its layers as files with the digest of their content."""

    names: tuple[str, ...]
    config: bytes
    layers: tuple[tuple[str, str], ...]


class _Content:
    """The archive's files, by name, also where a link leads to one."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._members = {member.name: member for member in archive.members(file, links=True)}

    def open(self, name: str) -> BinaryIO:
        """Open a file. Raises BundleError if there is none."""
        for _ in range(8):  # links to links are not written by any tool; a circle must end
            member = self._members.get(archive.safe_name(name))
            if member is None or member.directory:
                break
            if not member.link:
                return cast(BinaryIO, archive.Window(self._file, member.offset, member.size))
            name = member.link
        raise damaged(f"it has no file {name[:200]}, which it refers to")

    def read(self, name: str) -> bytes:
        """The content of a small file."""
        content = self.open(name).read(_LONGEST + 1)
        if len(content) > _LONGEST:
            raise damaged(f"{name[:200]} has more than {_LONGEST} bytes")
        return content

    def images(self) -> Iterator[_Image]:
        """What the archive holds. Raises BundleError if it is described wrongly."""
        for row in _parse(_ROWS, self.read(MANIFEST_FILE), MANIFEST_FILE):
            config = self.read(row.config)
            layers, ids = row.layers or (), _parse(_CONFIG, config, row.config).rootfs.diff_ids or ()
            if len(layers) != len(ids):
                raise damaged(
                    f"{MANIFEST_FILE} lists {counted(len(layers), 'layer')} of an image, and its configuration "
                    f"{row.config[:200]} {len(ids)}"
                )
            yield _Image(row.names or (), config, tuple(zip(layers, ids, strict=True)))


def _parse(model: TypeAdapter[Parsed], content: bytes, name: str) -> Parsed:
    """Read the JSON file *name* as *model*. Raises BundleError with the first thing wrong in it."""
    try:
        return model.validate_json(content)
    except ValidationError as error:
        raise damaged(f"{name[:200]}: {oci.first_flaw(error)}") from error


def _layer(content: _Content, name: str, diff: str, blobs: Blobs, stop: threading.Event) -> oci.Descriptor:
    """The layer with the content *diff*, compressed, in *blobs*.

    Raises BundleError if the file has another content, and Stopped when *stop* is set.
    """
    # Of what is compressed here alone: another archive may have the same layer in a form that another tool gave it, and
    # what is made of one archive must not depend on what the cache has of others.
    note = blobs.note(f"deflated-{_LEVEL}-{diff.removeprefix('sha256:')}")
    as_it_is = content.open(name).read(len(_MAGIC)) == _MAGIC
    try:
        known = oci.Descriptor.model_validate_json(b"" if as_it_is else note.read_bytes())
        if blobs.has(known):
            return known
    except (OSError, ValidationError):
        pass
    with temporary.file(note.parent, note.name) as target:
        found = _compress(content.open(name), target, name, stop)
        if found != diff:
            raise damaged(f"layer {name[:200]} has the digest {found} instead of {diff}")
        target.seek(0)
        digest, size = oci.digest_of_file(target), target.tell()
        temporary.put(target, blobs.path(digest))
    layer = oci.Descriptor(media_type=oci.LAYER, digest=digest, size=size)
    if not as_it_is:
        note.write_bytes(layer.to_json())
    return layer


def _compress(source: BinaryIO, target: BinaryIO, name: str, stop: threading.Event) -> str:
    """Write *source* to *target*, compressed if it is not, and return the digest of the plain bytes.

    Raises BundleError if it is compressed, and cut short or damaged, or not with gzip, and Stopped when *stop* is set;
    *name* is the layer's.
    """
    hashed = hashlib.sha256()
    start = source.read(len(_ZSTD))
    source.seek(0)
    if start == _ZSTD:  # crane writes what the registry has, and calls it .tar.gz
        raise refused(
            f"layer {name[:200]} is compressed with zstd, which is not supported in such an archive",
            hint="save the image in OCI format, for example with `crane pull --format=oci NAME DIR`",
        )
    if start.startswith(_MAGIC):  # crane writes layers that way
        for chunk in _chunks(source, stop):
            target.write(chunk)
        source.seek(0)
        try:
            with gzip.open(source) as plain:
                for chunk in _chunks(plain, stop):
                    hashed.update(chunk)
        except (gzip.BadGzipFile, zlib.error, EOFError) as error:
            raise damaged(f"layer {name[:200]} is not a complete gzip file: {error}") from error
    else:
        packer = zlib.compressobj(_LEVEL, wbits=31)
        for chunk in _chunks(source, stop):
            hashed.update(chunk)
            target.write(packer.compress(chunk))
        target.write(packer.flush())
    target.flush()
    return "sha256:" + hashed.hexdigest()


def _chunks(source: BinaryIO | gzip.GzipFile, stop: threading.Event) -> Iterator[bytes]:
    """What is left to read of *source*, until *stop* is set: then Stopped is raised."""
    while chunk := source.read(oci.CHUNK):
        if stop.is_set():
            raise Stopped("the run was stopped")
        yield chunk
