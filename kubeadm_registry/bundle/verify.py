"""Reading a bundle whole, to find whether it is what was written, and to tell people what is in it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from kubeadm_registry.bundle import signing, tool, tree
from kubeadm_registry.bundle.bundle import Bundle
from kubeadm_registry.bundle.failures import base_missing
from kubeadm_registry.bundle.layout import Layout, Seen
from kubeadm_registry.bundle.programs import Program
from kubeadm_registry.errors import BundleError, damaged
from kubeadm_registry.oci import descriptors as oci

#: Problems after which no more is looked for: a bundle with so many is of no use.
MOST = 50
AGAIN = "create the bundle again with `bundle create`"


def verify(
    path: Path, progress: Callable[[str], None] = lambda _text: None, *, key: Path | None = None,
    bases: Sequence[Path] = (), meter: Callable[[int, int], None] = lambda _done, _total: None,
) -> None:  # fmt: skip
    """Read the bundle at *path* whole; raises BundleError that lists every problem found, up to ``MOST``.

    What is checked: each blob has the size and the digest by which it is called; all that is referred to is there,
    and nothing else; no name leads out of the bundle, or a program's tree out of its directory; each program has an
    executable where it says. With *key* (see ``signing.check``) also who signed it: first, and *progress* is told. With
    *bases*, what a delta leaves out is read from them. *meter* is told how many bytes of how many were read.
    """
    found = list(islice(problems(path, progress, key=key, bases=bases, meter=meter), MOST))
    if found:
        first, more = found[0], " or more" if len(found) == MOST else ""
        words = f"{path}: {len(found)} problem{'s' if len(found) > 1 else ''}{more}"
        message = "\n".join([words, *(f"  {problem.message}" for problem in found)])
        raise BundleError(message, code=first.code, hint=first.hint)


def problems(
    path: Path, progress: Callable[[str], None] = lambda _text: None, *, key: Path | None = None,
    bases: Sequence[Path] = (), meter: Callable[[int, int], None] = lambda _done, _total: None,
) -> Iterator[BundleError]:  # fmt: skip
    """Give everything that is wrong with the bundle at *path*, as errors that are not raised."""
    try:
        with ExitStack() as stack:
            bundle = stack.enter_context(Bundle.open(path))
            if key is not None:
                progress(f"signed by {signing.check(bundle.layout, key)}")
            held = [stack.enter_context(Bundle.open(base)) for base in bases]
            yield from _problems(bundle, progress, _Reading(bundle.layout, meter), held)
    except BundleError as error:
        yield error


class _Reading:
    """Counts the bytes of *layout* that were read."""

    def __init__(self, layout: Layout, meter: Callable[[int, int], None]) -> None:
        self._meter = meter
        self._done, self._total = 0, sum(layout.store.sizes.values())

    def read(self, count: int) -> None:
        """So many bytes more."""
        self._done += count
        self._meter(min(self._done, self._total), self._total)

    def end(self) -> None:
        """All was read that had to be."""
        self._meter(self._total, self._total)


def _problems(
    bundle: Bundle, progress: Callable[[str], None], reading: _Reading, bases: Sequence[Bundle]
) -> Iterator[BundleError]:
    layout = bundle.layout
    programs = bundle.programs  # what is wrong with the index as a whole ends the check: the rest would be guesses
    bundle.images  # noqa: B018
    wanted = {oci.LAYOUT_FILE, oci.INDEX_FILE, signing.FILE}
    left_out: dict[str, oci.Descriptor] = {}
    layers = {program.digest: program for program in programs.values()}
    for file, digest in _files(layout, programs.get(tool.NAME)).items():
        wanted.add(file)
        if not _has_file(layout, file, digest):
            yield damaged(
                f"{layout.where}: {file} is not the original file of the bundle",
                hint="do not run it; copy the bundle again, or create it again with `bundle create`",
            )
    seen: Seen = {}  # a blob that many images have is read once, and a manifest is parsed once
    whole = True
    for entry in layout.index.manifests:
        name = (entry.annotations or {}).get(oci.REFERENCE_NAME, entry.digest)
        progress(f"checking {name}")
        try:
            for descriptor in layout.reachable(entry, seen=seen):
                wanted.add(oci.blob_name(descriptor.digest))
                if descriptor.digest in layout.lineage.left_out:
                    left_out[descriptor.digest] = descriptor
                else:
                    yield from _blob_problems(bundle, descriptor, layers.get(descriptor.digest), name, reading.read)
        except BundleError as error:
            whole = False
            yield error
    reading.end()
    if not whole:
        return  # what the rest of a tree refers to is not known
    yield from _orphans(layout, wanted, set(left_out))
    if bases:
        progress("checking the omitted blobs")
        yield from _base_problems(layout, left_out.values(), bases)


def _orphans(layout: Layout, wanted: set[str], left_out: set[str]) -> Iterator[BundleError]:
    """What is in the bundle, or said to be left out, and nobody needs."""
    for file in sorted(set(layout.store.sizes) - wanted):
        yield damaged(f"{layout.where}: nothing refers to {file}", hint=AGAIN)
    for digest in sorted(layout.lineage.left_out.keys() - left_out):
        yield damaged(f"{layout.where}: nothing refers to {digest}, which is listed as omitted", hint=AGAIN)


def _base_problems(
    layout: Layout, left_out: Iterable[oci.Descriptor], bases: Sequence[Bundle]
) -> Iterator[BundleError]:
    """What a delta leaves out and none of the *bases* holds, or holds damaged."""
    missing = []
    for descriptor in left_out:
        base = next((base for base in bases if base.layout.has(descriptor.digest)), None)
        if base is None:
            missing.append(descriptor.digest)
        else:
            yield from _blob_problems(base, descriptor, None, base.layout.where)
    if missing:
        yield base_missing(
            f"{layout.where} omits blobs that are in none of {', '.join(base.layout.where for base in bases)}: "
            + ", ".join(f"{digest} (of {layout.lineage.left_out[digest]})" for digest in sorted(missing)),
            hint=f"pass the bundle with index {layout.lineage.base} with --base, and its own base bundles if it "
            "is a delta",
        )


def _files(layout: Layout, program: Program | None) -> Mapping[str, str]:
    """The files beside index and blobs, with their digests; *program* is this tool, if the bundle lists it."""
    if layout.version.number == 1 and program is not None and layout.has(program.digest):
        return {tool.UNPACK_FILE: oci.digest_of(tool.unpack_script(program, tool.UNPACK_0_1))}
    return layout.version.files


def _has_file(layout: Layout, name: str, digest: str) -> bool:
    if name not in layout.store.sizes:
        return False
    with layout.store.open(name) as file:
        return oci.digest_of_file(file) == digest


def _blob_problems(
    bundle: Bundle, descriptor: oci.Descriptor, program: Program | None, name: str,
    read: Callable[[int], None] = lambda _count: None,
) -> Iterator[BundleError]:  # fmt: skip
    try:
        with bundle.layout.blob(descriptor) as blob:
            while chunk := blob.read(oci.CHUNK):
                read(len(chunk))
        if program:
            with bundle.layout.blob(descriptor) as layer:
                for text in tree.check_layer(layer, program.entry_point, program.unpacked):
                    yield damaged(f"{name}: {text}", hint=AGAIN)
    except BundleError as error:
        yield BundleError(f"{name}: {error.message}", code=error.code, hint=error.hint)


def inspect(path: Path) -> dict[str, Any]:
    """Return what the bundle at *path* holds, as plain data for JSON; sizes in bytes. Reads no blob but manifests.

    Raises BundleError if the bundle cannot be opened or its index is wrong.
    """
    with Bundle.open(path) as bundle:
        layout = bundle.layout
        sizes = {program.digest: program.size for program in bundle.programs.values()}
        images = []
        for name, entry in sorted(bundle.images.items()):
            blobs = list(layout.reachable(entry))
            sizes |= {blob.digest: blob.size for blob in blobs}
            images.append({"name": name, "digest": entry.digest, "size": sum(blob.size for blob in blobs)})
        programs = []
        for _, program in sorted(bundle.programs.items()):
            programs.append({"reference": program.reference, **asdict(program)})
        return {
            "path": str(path),
            "size": sum(layout.store.sizes.values()),
            "index": layout.lineage.index,
            "signed": signing.FILE in layout.store.sizes,
            "base": layout.lineage.base,
            "sequence": layout.lineage.sequence,
            "leftOut": sum(sizes[digest] for digest in layout.lineage.left_out if digest in sizes),
            "programs": programs,
            "images": images,
        }
