"""Bundles of noise, and the same images as layouts for other programs; a blob is on the disk once, however often."""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kubeadm_registry.bundle.make import FromLayout, create
from kubeadm_registry.oci import descriptors as oci

NAME = "registry.example/bench/image-{}"
TAG = "v1"
MB = 10**6
_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
_CONFIG = "application/vnd.oci.image.config.v1+json"


@dataclass(frozen=True, slots=True)
class Images:
    """A *bundle*, and each of its images alone as a layout, by its name in the registry; *size* is bytes of blobs."""

    bundle: Path
    layouts: dict[str, Path]
    size: int


class _Blobs:
    """Blobs below a directory, each in a file."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.size = 0
        directory.mkdir(parents=True)

    def noise(self, size: int) -> oci.Descriptor:
        """A layer of *size* bytes, nearly, that nobody has seen before; gzip, which some would make of it otherwise."""
        new, digest, length = self._directory / "new", hashlib.sha256(), 0
        stored = zlib.compressobj(level=0, wbits=31)
        with new.open("wb") as file:
            for at in range(0, size, MB):
                piece = stored.compress(os.urandom(min(MB, size - at)))
                piece += stored.flush() if at + MB >= size else b""
                length += file.write(piece)
                digest.update(piece)
        new.rename(self._directory / digest.hexdigest())
        self.size += length
        return oci.Descriptor(media_type=_LAYER, digest=f"sha256:{digest.hexdigest()}", size=length)

    def text(self, content: bytes, media_type: str) -> oci.Descriptor:
        """A small one."""
        descriptor = oci.Descriptor(media_type=media_type, digest=oci.digest_of(content), size=len(content))
        self.path(descriptor).write_bytes(content)
        self.size += len(content) if media_type == _CONFIG else 0
        return descriptor

    def path(self, descriptor: oci.Descriptor) -> Path:
        """Where a blob is."""
        return self._directory / descriptor.digest.partition(":")[2]


def noise_images(
    directory: Path, layers: Sequence[Sequence[int | str]], shared: dict[str, int] | None = None
) -> Images:
    """Images with *layers* each, given as bytes, or as the name of one that is *shared*. Made below *directory*."""
    blobs = _Blobs(directory / "blobs")
    common = {name: blobs.noise(size) for name, size in (shared or {}).items()}
    layouts = {}
    for number, sizes in enumerate(layers):
        held = tuple(common[one] if isinstance(one, str) else blobs.noise(one) for one in sizes)
        manifest, config = _image(blobs, number, held)
        layouts[NAME.format(number)] = _layout(directory / f"image-{number}", blobs, manifest, (*held, config))
    return _bundled(directory, layouts, blobs)


def noise_index(directory: Path, count: int, size: int) -> Images:
    """One image that is an index of *count* others, each with a layer of *size* bytes. Made below *directory*."""
    blobs = _Blobs(directory / "blobs")
    parts: list[oci.Descriptor] = []
    others: list[oci.Descriptor] = []
    for number in range(count):
        layer = blobs.noise(size)
        manifest, config = _image(blobs, number, (layer,))
        parts.append(manifest)
        others += [layer, config]
    index = blobs.text(oci.Index(manifests=tuple(parts)).to_json(), oci.INDEX)
    layouts = {NAME.format("many"): _layout(directory / "image", blobs, index, (*parts, *others))}
    return _bundled(directory, layouts, blobs)


def _image(blobs: _Blobs, number: int, layers: tuple[oci.Descriptor, ...]) -> tuple[oci.Descriptor, oci.Descriptor]:
    """The manifest and the configuration of an image with these *layers*."""
    text = {
        "architecture": "amd64", "os": "linux", "config": {"Labels": {"number": str(number)}},
        "rootfs": {"type": "layers", "diff_ids": [layer.digest for layer in layers]},
    }  # fmt: skip
    config = blobs.text(json.dumps(text).encode(), _CONFIG)
    return blobs.text(oci.Manifest(config=config, layers=layers).to_json(), oci.MANIFEST), config


def _bundled(directory: Path, layouts: dict[str, Path], blobs: _Blobs) -> Images:
    bundle = directory / "images.tar"
    create(bundle, {}, images=[FromLayout(layout, f"{name}:{TAG}") for name, layout in layouts.items()])
    return Images(bundle, layouts, blobs.size)


def _layout(directory: Path, blobs: _Blobs, manifest: oci.Descriptor, others: Sequence[oci.Descriptor]) -> Path:
    folder = directory / "blobs" / "sha256"
    folder.mkdir(parents=True)
    for one in (manifest, *others):
        (folder / blobs.path(one).name).hardlink_to(blobs.path(one))
    (directory / oci.LAYOUT_FILE).write_bytes(oci.LAYOUT)
    entry = manifest.model_copy(update={"annotations": {oci.REFERENCE_NAME: TAG}})
    (directory / oci.INDEX_FILE).write_bytes(oci.Index(manifests=(entry,)).to_json())
    return directory
