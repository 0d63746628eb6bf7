"""A bundle, opened for reading."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from kubeadm_registry.bundle import tree
from kubeadm_registry.bundle.images import image_name, is_program
from kubeadm_registry.bundle.layout import Layout
from kubeadm_registry.bundle.programs import Program, from_manifest
from kubeadm_registry.disk import naming
from kubeadm_registry.errors import damaged
from kubeadm_registry.oci import descriptors as oci
from kubeadm_registry.oci.references import parse


class Bundle:
    """A bundle's programs and images, read without unpacking it. Close it, or use it in a ``with`` statement.

    Opening reads the names in the file, not the contents: ``verify`` does that. What is read later is compared with
    its digest as it is read.
    """

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._sound: set[str] = set()
        self._looking = threading.Lock()

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """Open the bundle at *path*; raises BundleError if it is none, or is damaged."""
        return cls(Layout.open(Path(path)))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; streams of this bundle cannot be read after it."""
        self.layout.close()

    @cached_property
    def programs(self) -> Mapping[str, Program]:
        """The programs, by name; raises BundleError if one is described wrongly or is there twice."""
        programs: dict[str, Program] = {}
        for entry in self.layout.index.manifests:
            if not is_program(entry):
                continue
            reference = (entry.annotations or {})[oci.REFERENCE_NAME]
            program = from_manifest(self.layout.manifest(entry), entry.digest)
            if program.reference != reference:
                raise damaged(f"{self.layout.where}: the index calls {program.reference} {reference[:200]}")
            if program.name in programs:
                raise damaged(f"{self.layout.where}: program {program.name} is listed twice")
            programs[program.name] = program
        return programs

    @cached_property
    def images(self) -> Mapping[str, oci.Descriptor]:
        """The images, by full name; raises BundleError for a name that is not full, or is there twice."""
        images: dict[str, oci.Descriptor] = {}
        for entry in self.layout.index.manifests:
            if is_program(entry):
                continue
            name = image_name(entry.annotations)
            reference = parse(name)
            if reference is None or name in images:
                raise damaged(
                    f"{self.layout.where}: {name[:200] or entry.digest!r} is not a valid image name, or is listed twice"
                )
            if reference.digest not in ("", entry.digest):
                raise damaged(f"{self.layout.where}: the entry {name} has another digest, {entry.digest}")
            if entry.media_type not in oci.TREES:
                raise damaged(f"{self.layout.where}: {name} is {entry.media_type[:100]}, not an image")
            images[name] = entry
        return images

    def extract(self, program: Program, to: Path) -> None:
        """Write the layer of *program*, a tar.gz, to the file *to*; its digest is checked, and what it unpacks to.

        Raises BundleError if the layer is missing, damaged, or made to do harm where it is unpacked; then *to* is not
        there.
        """
        new = to.with_name(to.name + ".new")
        try:
            with self.layout.blob(program.layer) as source, naming(to), new.open("wb") as target:
                copy(source, target)
            with self._looking:  # the same bytes, which hosts want at the same time, are looked into once
                if program.digest not in self._sound:
                    with new.open("rb") as layer:
                        for flaw in tree.check_layer(layer, program.entry_point, program.unpacked):
                            raise damaged(f"{self.layout.where}: {program.reference}: {flaw}")
                    self._sound.add(program.digest)
            new.replace(to)
        finally:
            new.unlink(missing_ok=True)


def copy(source: BinaryIO, target: io.BufferedWriter) -> None:
    """Copy *source* to *target* in pieces, and flush it to the disk."""
    while chunk := source.read(oci.CHUNK):
        target.write(chunk)
    target.flush()
    os.fsync(target.fileno())
