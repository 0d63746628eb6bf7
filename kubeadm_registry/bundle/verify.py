"""Reading a bundle whole, to find whether it is what was written, and to tell people what is in it."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kubeadm_registry.bundle import oci, tool, tree
from kubeadm_registry.bundle.bundle import Bundle
from kubeadm_registry.bundle.programs import Program
from kubeadm_registry.errors import BundleError


def verify(path: Path, progress: Callable[[str], None] = lambda _text: None) -> None:
    """Read the bundle at *path* whole; raises BundleError that lists every problem found.

    What is checked: each blob has the size and the digest by which it is called; all that is referred to is there,
    and nothing else; no name leads out of the bundle, or a program's tree out of its directory; each program has an
    executable where it says.
    """
    found = list(problems(path, progress))
    if found:
        first = found[0]
        raise BundleError(
            "\n".join(
                [f"{path}: {len(found)} problem{'s' if len(found) > 1 else ''}"] + [f"  {p.message}" for p in found]
            ),
            code=first.code,
            hint=first.hint,
        )


def problems(path: Path, progress: Callable[[str], None] = lambda _text: None) -> Iterator[BundleError]:
    """Give everything that is wrong with the bundle at *path*, as errors that are not raised."""
    try:
        with Bundle.open(path) as bundle:
            yield from _problems(bundle, progress)
    except BundleError as error:
        yield error


def _problems(bundle: Bundle, progress: Callable[[str], None]) -> Iterator[BundleError]:
    layout = bundle.layout
    programs = bundle.programs  # what is wrong with the index as a whole ends the check: the rest would be guesses
    bundle.images  # noqa: B018
    wanted = {oci.LAYOUT_FILE, oci.INDEX_FILE}
    layers = {program.digest: program for program in programs.values()}
    if tool.NAME in programs:
        wanted.add(tool.UNPACK_FILE)
        if not _is_unpack_script(bundle, programs[tool.NAME]):
            yield BundleError(
                f"{layout.where}: {tool.UNPACK_FILE} is not the script that unpacks the tool in it",
                code="BundleDamaged",
                hint="do not run it; make the bundle again with `bundle create`",
            )
    checked: set[str] = set()
    for entry in layout.index.manifests:
        name = (entry.annotations or {}).get(oci.REFERENCE_NAME, entry.digest)
        progress(f"checking {name}")
        try:
            for descriptor in layout.reachable(entry):
                wanted.add(oci.blob_name(descriptor.digest))
                if descriptor.digest not in checked:
                    checked.add(descriptor.digest)
                    yield from _blob_problems(bundle, descriptor, layers.get(descriptor.digest), name)
        except BundleError as error:
            yield error
    for file in sorted(set(layout.store.sizes) - wanted):
        yield BundleError(
            f"{layout.where}: nothing refers to {file}",
            code="BundleDamaged",
            hint="make the bundle again with `bundle create`",
        )


def _is_unpack_script(bundle: Bundle, program: Program) -> bool:
    """Whether the script that people run is ours, of the version that made the bundle."""
    store = bundle.layout.store
    script = tool.unpack_script(program)
    if store.sizes.get(tool.UNPACK_FILE) != len(script):
        return False
    with store.open(tool.UNPACK_FILE) as file:
        return file.read() == script


def _blob_problems(
    bundle: Bundle, descriptor: oci.Descriptor, program: Program | None, name: str
) -> Iterator[BundleError]:
    try:
        with bundle.layout.blob(descriptor) as blob:
            while blob.read(oci.CHUNK):
                pass
        if program:
            with bundle.layout.blob(descriptor, offset=0) as layer:
                for text in tree.check_layer(layer, program.entry_point):
                    yield BundleError(
                        f"{name}: {text}", code="BundleDamaged", hint="make the bundle again with `bundle create`"
                    )
    except BundleError as error:
        yield BundleError(f"{name}: {error.message}", code=error.code, hint=error.hint)
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        yield BundleError(
            f"{name}: its layer is not a whole tar.gz: {error}",
            code="BundleDamaged",
            hint="make the bundle again with `bundle create`",
        )


def inspect(path: Path) -> dict[str, Any]:
    """Return what the bundle at *path* holds, as plain data for JSON; sizes in bytes. Reads no blob but manifests.

    Raises BundleError if the bundle cannot be opened or its index is wrong.
    """
    with Bundle.open(path) as bundle:
        layout = bundle.layout
        images = []
        for name, entry in sorted(bundle.images.items()):
            blobs = list(layout.reachable(entry))
            images.append({"name": name, "digest": entry.digest, "size": sum(blob.size for blob in blobs)})
        programs = []
        for _, program in sorted(bundle.programs.items()):
            programs.append({"reference": program.reference, **asdict(program)})
        return {
            "path": str(path),
            "size": sum(layout.store.sizes.values()),
            "index": oci.digest_of(layout.index_bytes),
            "programs": programs,
            "images": images,
        }
