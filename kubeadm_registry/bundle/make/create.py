"""Making a bundle."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import BinaryIO, Protocol

from kubeadm_registry.bundle import archive, signing, temporary, tool, versions
from kubeadm_registry.bundle.delta import Base
from kubeadm_registry.bundle.failures import CacheDamaged, of_inputs, refused
from kubeadm_registry.bundle.images import images_in, lacking, platforms_of, prune, require, require_layers
from kubeadm_registry.bundle.layout import Layout
from kubeadm_registry.bundle.make import operator_image
from kubeadm_registry.bundle.make.context import (
    BuildContext,
    Meter,
    Mirror,
    Progress,
    default_cache,
    silent,
    this_architecture,
)
from kubeadm_registry.bundle.make.images import ImageSource
from kubeadm_registry.bundle.make.sources import Built, ProgramSource
from kubeadm_registry.bundle.programs import ARCHITECTURES, Program, to_manifest
from kubeadm_registry.errors import BundleError, ConfigError
from kubeadm_registry.oci import descriptors as oci
from kubeadm_registry.oci.references import parse
from kubeadm_registry.printable import counted


@dataclass(frozen=True, slots=True)
class Made:
    """A bundle that was written: its *size* in bytes, and the digest of its index, which stands for all of it."""

    path: Path
    size: int
    index: str
    programs: tuple[Program, ...]
    images: tuple[str, ...]


class _Blob(Protocol):
    def __call__(self) -> BinaryIO: ...


@dataclass
class _Contents:
    """What goes into a bundle: descriptors for the index, and a way to open each blob."""

    entries: list[oci.Descriptor]
    blobs: dict[str, tuple[int, _Blob]]

    def add(self, content: bytes) -> str:
        digest = oci.digest_of(content)
        self.blobs[digest] = (len(content), lambda: io.BytesIO(content))
        return digest


def create(
    output: Path,
    programs: Mapping[str, ProgramSource],
    *,
    images: Sequence[ImageSource] = (),
    platforms: Sequence[oci.Platform] = (),
    since: Path | None = None,
    sign: Path | None = None,
    inputs: Sequence[Path] = (),
    architecture: str = "",
    progress: Progress = silent,
    meter: Meter = silent,
    cache: Path | None = None,
    mirror: Mirror | None = None,
    context: BuildContext | None = None,
) -> Made:
    """Make a bundle for servers of one *architecture* (this machine's if empty) and write it to *output*.

    The file appears whole or not at all, and the same inputs give the same bytes; a link is followed. *programs* come
    from ``choose``, *images* from ``images_from``; of those for several platforms only *platforms* are taken: none
    given means what the files hold, and from registries what servers of that architecture need. *meter* is told of
    bytes fetched. *since* is an earlier bundle: what it has is left out. *sign* is the file of a key (see
    ``signing.sign``). *output* must be none of these two, and none of the other *inputs*.
    *context*, for tests, replaces *cache* and *mirror*. Raises BundleError if something cannot be had or is refused,
    ConfigError for what cannot be made.
    """
    architecture = architecture or this_architecture()
    if architecture not in ARCHITECTURES:
        raise ConfigError(
            f"architecture {architecture} is not supported",
            hint=f"choose one of {', '.join(ARCHITECTURES)}",
            code="UnknownArchitecture",
        )
    if not programs and not images:
        raise ConfigError("the bundle would be empty", hint="add programs or images", code="BundleEmpty")
    target = temporary.target(output, [*filter(None, (since, sign)), *inputs])
    base = Base.read(since) if since is not None else None
    if sign is not None:
        signing.require(sign)
    with temporary.directory("kubeadm-registry-bundle-") as scratch:
        bench = context or BuildContext(
            architecture=architecture,
            scratch=scratch,
            cache=cache or default_cache(),
            progress=progress,
            meter=meter,
            mirror=mirror or Mirror.from_environment(),
        )
        held = base.has if base is not None else ()
        bench = replace(bench, architecture=architecture, scratch=scratch, progress=progress, held=held)
        built = [source.build(name, bench) for name, source in sorted(programs.items())]
        bundle = _Bundle(target, built, images, platforms, base, sign)
        try:
            index, names = bundle.make(bench)
        except CacheDamaged as error:
            progress(f"{error.message}: comparing everything taken from the cache")
            index, names = bundle.make(replace(bench, thorough=True))
    return Made(
        path=output,
        size=output.stat().st_size,
        index=oci.digest_of(index),
        programs=tuple(item.program for item in built),
        images=tuple(names),
    )


@dataclass(frozen=True, slots=True)
class _Bundle:
    """A bundle to be made at *target*: *built* programs, *images*, and the rest as for ``create``."""

    target: Path
    built: Sequence[Built]
    images: Sequence[ImageSource]
    platforms: Sequence[oci.Platform]
    base: Base | None
    sign: Path | None

    def make(self, bench: BuildContext) -> tuple[bytes, list[str]]:
        """Bring the images and write the file; returns its index and the images' names."""
        contents = _Contents(entries=[], blobs={})
        for item in self.built:
            _add_program(contents, item)
        with of_inputs(), ExitStack() as stack:
            names = _add_images(contents, self.images, self.platforms, bench, stack)
            names = sorted({*names, *_add_operator(contents, self.built)})
            annotations = self.base.leave_out(contents.blobs) if self.base is not None else {}
            files = {}
            for program in (item.program for item in self.built):
                if program.name == tool.NAME and program.digest in contents.blobs:
                    files[tool.UNPACK_FILE] = tool.unpack_script(program)
            annotations |= versions.index_annotations(files)
            entries = tuple(sorted(contents.entries, key=_reference))
            index = oci.Index(manifests=entries, annotations=annotations).to_json()
            files = {oci.LAYOUT_FILE: versions.layout_file(index), oci.INDEX_FILE: index, **files}
            if len(index) > oci.MAX_INDEX or len(files) + len(contents.blobs) >= archive.MAX_MEMBERS:
                raise refused(
                    f"the bundle has {counted(len(names), 'image')} and {counted(len(contents.blobs), 'blob')}, more "
                    "than can be read again",
                    hint="create several bundles, each with a part of the images",
                )
            signature = signing.sign(index, self.sign) if self.sign is not None else b""
            bench.progress(f"writing {self.target}")
            _write(self.target, files, contents, signature, bench.meter)
        return index, names


def _reference(entry: oci.Descriptor) -> str:
    return (entry.annotations or {})[oci.REFERENCE_NAME]


def _add_program(contents: _Contents, built: Built) -> None:
    program = built.program
    manifest = to_manifest(program)
    content = manifest.to_json()
    contents.add(b"{}")
    contents.blobs[program.digest] = (program.size, lambda: built.layer.open("rb"))
    contents.entries.append(
        oci.Descriptor(
            media_type=oci.MANIFEST,
            artifact_type=manifest.artifact_type,
            digest=contents.add(content),
            size=len(content),
            annotations={oci.REFERENCE_NAME: program.reference},
            platform=oci.Platform(os="linux", architecture=program.architecture),
        )
    )


def _add_operator(contents: _Contents, built: Iterable[Built]) -> Iterator[str]:
    """The operator's image, of the layer of this program if that was built here; give its name."""
    for item in built:
        if item.program.name == tool.NAME and item.program.source.kind == "distribution-package":
            image = operator_image.image_of(item.program, item.layer)
            if any(_reference(entry) == image.name for entry in contents.entries):
                continue  # the user brings one
            contents.add(image.config)
            contents.add(image.manifest)
            contents.entries.append(image.descriptor)
            yield image.name


def _add_images(
    contents: _Contents, images: Iterable[ImageSource], platforms: Sequence[oci.Platform], bench: BuildContext,
    stack: ExitStack,
) -> list[str]:  # fmt: skip
    """Add all images of *images*, whose layouts stay open until *stack* ends; return their names, sorted."""
    found: dict[str, oci.Descriptor] = {}
    usual = (oci.Platform(os="linux", architecture=bench.architecture),)
    for source in images:
        layout = stack.enter_context(closing(source.open(bench, platforms or usual)))
        for name, entry in images_in(layout, getattr(source, "name", "")):
            root, needed = _for_platforms(contents, layout, name, entry, platforms)
            _look_at_platforms(layout, name, entry, platforms, usual, bench)
            if name in found and found[name].digest != root.digest:
                raise refused(
                    f"{layout.where} has another {name} than an earlier input", hint="pass only one of the two"
                )
            for descriptor in needed:
                if descriptor.digest not in bench.held:
                    _expect(layout, descriptor, name)  # says now, not after minutes of writing, that it is missing
                contents.blobs[descriptor.digest] = (descriptor.size, partial(layout.blob, descriptor))
            for manifest in (one for one in needed if one.media_type in oci.MANIFESTS):
                require_layers(layout, manifest, name, bench.held)
            found[name] = root
    contents.entries.extend(found.values())
    return sorted(found)


def _expect(layout: Layout, descriptor: oci.Descriptor, name: str) -> None:
    """Raise BundleError if *layout* lacks the blob, a part of the image *name*."""
    try:
        layout.blob(descriptor).close()
    except BundleError as error:
        if error.code != "BundleIncomplete" or not oci.NOT_DISTRIBUTED.search(descriptor.media_type):
            raise
        raise BundleError(
            f"{error.message}, for {name}", code=error.code,
            hint="tools do not save such Windows layers; choose other platforms, for example --platform linux/amd64",
        ) from error  # fmt: skip


def _for_platforms(
    contents: _Contents, layout: Layout, name: str, entry: oci.Descriptor, platforms: Sequence[oci.Platform]
) -> tuple[oci.Descriptor, list[oci.Descriptor]]:
    """The image *entry* without what *platforms* have no use for, and what it needs of *layout*."""
    root, roots = entry, [entry]
    if entry.media_type in oci.INDEXES and platforms and not _is_pinned(name):
        whole = layout.read(entry)
        content = prune(whole, platforms, name, layout.has)
        if content != whole:
            root = entry.model_copy(update={"digest": contents.add(content), "size": len(content)})
            roots = list(oci.parse(oci.Index, content, name).manifests)
    try:
        return root, list(layout.reachable(*roots))
    except BundleError as error:
        # As engines save an image of which they pulled one platform: with the whole index, and the rest is not there.
        there = [str(one.platform) for one in layout.children(entry) if one.platform and layout.has(one.digest)]
        if error.code != "BundleIncomplete" or not there or _is_pinned(name):
            raise
        raise BundleError(
            f"{error.message}, for {name}", code=error.code,
            hint=f"choose available platforms with --platform {','.join(sorted(set(there)))}",
        ) from error  # fmt: skip


def _look_at_platforms(
    layout: Layout, name: str, entry: oci.Descriptor, platforms: Sequence[oci.Platform],
    usual: Sequence[oci.Platform], bench: BuildContext,
) -> None:  # fmt: skip
    """Refuse the image if it is for none of *platforms*, and tell those that it lacks.

    With none given, tell if it is not for the servers.
    """
    there = platforms_of(layout, entry, bench.held)
    if platforms and not _is_pinned(name):
        require(name, there, platforms)
        if lacks := lacking(there, platforms):
            bench.progress(f"{name} is not available for {', '.join(map(str, lacks))}", level="warning")
        return
    try:
        require(name, there, usual)
    except BundleError as error:
        bench.progress(f"{error.message}, only for {', '.join(map(str, there))}", level="warning")


def _is_pinned(name: str) -> bool:
    """Whether *name* has a digest: then it is one image, whatever it is for."""
    return bool((reference := parse(name)) and reference.digest)


def _write(target: Path, files: Mapping[str, bytes], contents: _Contents, signature: bytes, meter: Meter) -> None:
    """Write the file beside its final place, flush it to the disk and rename it; *meter* is told of the blobs."""
    # Manifests, being small, come first: whoever reads the file in order knows early what it holds.
    order = sorted(contents.blobs.items(), key=lambda item: (item[1][0] > oci.MAX_MANIFEST, item[0]))
    total = sum(size for size, _ in contents.blobs.values())
    with temporary.file(target.parent, target.name) as file:
        writer = archive.Writer(file, progress=lambda done: meter(min(done, total), total))
        for name, text in files.items():
            writer.file(name, io.BytesIO(text), len(text))
        for digest, (size, opener) in order:
            with opener() as content:
                writer.file(oci.blob_name(digest), content, size)
        if signature:  # the last one, where `bundle sign` puts it as well
            writer.file(signing.FILE, io.BytesIO(signature), len(signature))
        writer.finish()
        # The bundle holds no secret; the mode of a temporary file would keep it from the people it is made for.
        umask = os.umask(0)
        os.umask(umask)
        temporary.put(file, target, mode=0o666 & ~umask)
