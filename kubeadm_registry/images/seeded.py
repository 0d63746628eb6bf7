"""What a registry knows of the bundles that it was given, and the blobs that a delta takes from it.

For each line of bundles (a full one and its deltas) the registry keeps a small artifact that says which was seeded
last. A delta goes on top of its own base only, so an older one that somebody replays is noticed. The annotations of the
artifact are the record, by the rules of ``kubeadm_registry.formats``.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from kubeadm_registry.bundle import Bundle
from kubeadm_registry.bundle.failures import base_missing
from kubeadm_registry.bundle.lineage import Lineage
from kubeadm_registry.errors import BundleError, Error, RegistryError
from kubeadm_registry.formats import KEY, Format, Found
from kubeadm_registry.images.absence import out_of_reach
from kubeadm_registry.images.artifacts import EMPTY, EMPTY_CONTENT
from kubeadm_registry.oci import descriptors as oci
from kubeadm_registry.oci.references import parse, repository_prefix
from kubeadm_registry.printable import counted
from kubeadm_registry.registry import Api, push_blob

REPOSITORY = "kubeadm-registry/bundle"
LINE_TAG = "line-"
ARTIFACT = "application/vnd.kubeadm-registry.bundle.v1"
INDEX = "dev.kubeadm-registry.bundle.index"
_SEQUENCE = "dev.kubeadm-registry.bundle.sequence"
_FORMAT = "dev.kubeadm-registry.format"
#: Version 1, of release 0.1, did not say its format.
FORMAT = Format("the record of what was seeded into the registry", version=2)


@dataclass(frozen=True, slots=True)
class Record:
    """The bundle of a line that was seeded last: the digest of its index, and how many came before it.

    *document* is the whole record as it was read, and *found* what it says of its format: what another release has
    added is written back.
    """

    index: str
    sequence: int
    document: Mapping[str, Any] = field(default_factory=dict, compare=False)
    found: Found = field(default_factory=lambda: Found({}), compare=False)

    @classmethod
    def parse(cls, content: bytes, what: str) -> Record:
        """The record that *content*, the JSON of a manifest, is; messages call it *what*.

        Raises Error (SeedRecordDamaged, NewerFormat).
        """
        try:
            document = json.loads(content)
            said = document["annotations"]
            found = FORMAT.open({KEY: json.loads(said[_FORMAT])} if _FORMAT in said else {})
        except (ValueError, RecursionError, LookupError, TypeError) as error:
            raise _damaged(f"{what}: the annotations are not valid: {error}") from error
        index, sequence = said.get(INDEX), said.get(_SEQUENCE)
        if not (isinstance(index, str) and re.fullmatch(r"sha256:[0-9a-f]{64}", index)):
            raise _damaged(f"{what}: annotations.{INDEX} is not the digest of a bundle's index")
        if not (isinstance(sequence, str) and re.fullmatch(r"[0-9]{1,6}", sequence)):
            raise _damaged(f"{what}: annotations.{_SEQUENCE} is not the number of a bundle")
        return cls(index, int(sequence), document, found)


def tag(line: Lineage) -> str:
    """The tag of the record of a line, which is known by its first bundle."""
    return f"{LINE_TAG}{line.root.removeprefix('sha256:')}"


def read(registry: Api, line: Lineage) -> Record | None:
    """The record of a line; None if nothing of it was seeded.

    Raises RegistryError, a temporary one (RegistryNotWhole) if it is listed and cannot be read, which zot calls 404;
    and Error: SeedRecordDamaged, or NewerFormat if only a newer release can read it.
    """
    content = registry.manifest(REPOSITORY, tag(line))
    what = f"{REPOSITORY}:{tag(line)} in the registry"
    if content is None and tag(line) in registry.tags(REPOSITORY):
        remedy = "seed the newest bundle of its series with --allow-older, which writes the record again"
        raise out_of_reach(what, remedy, unknown="which bundle was seeded last")
    return None if content is None else Record.parse(content, what)


def _damaged(message: str) -> Error:
    return Error(
        message, code="SeedRecordDamaged",
        hint="seed the newest bundle of its series with --allow-older, which writes the record again",
    )  # fmt: skip


def require_writer(record: Record | None) -> None:
    """Raise NewerFormat if only a newer release may write in place of *record*."""
    if record is not None:
        FORMAT.seal({}, record.found)


def write(registry: Api, line: Lineage, record: Record | None) -> None:
    """Note in the registry that the bundle was seeded, in place of *record*. Raises RegistryError, NewerFormat."""
    content = render(line, record)
    push_blob(registry, REPOSITORY, EMPTY.digest, EMPTY_CONTENT)
    registry.push_manifest(REPOSITORY, tag(line), content, oci.MANIFEST)


def render(line: Lineage, record: Record | None) -> bytes:
    """The content of the record of a bundle, in place of *record*. Raises NewerFormat."""
    before: Mapping[str, Any] = record.document if record else {}
    stamp = FORMAT.seal({}, record.found if record else None)[KEY]
    new = oci.Manifest(artifact_type=ARTIFACT, config=EMPTY, layers=(EMPTY,))
    annotations = {
        **before.get("annotations", {}),
        INDEX: line.index,
        _SEQUENCE: str(line.sequence),
        _FORMAT: oci.canonical(stamp).decode(),
    }
    return oci.canonical({**json.loads(new.to_json()), **before, "annotations": annotations})


def judge(line: Lineage, record: Record | None) -> None:
    """Whether a bundle may follow on what was seeded: its base, or itself. Raises BundleError.

    Without a record anything may: what the registry lacks is found while it is seeded.
    """
    if record is None or record.index in (line.index, line.base):
        return
    if line.sequence > record.sequence:
        raise base_missing(
            f"the delta is based on bundle {line.base}, but the last bundle of its series that was loaded is "
            f"{record.index}",
            hint="seed its base bundle first",
        )
    raise BundleError(
        f"the bundle is number {line.sequence} of its series, but number {record.sequence} was already loaded "
        f"({record.index})",
        code="BundleReplayed",
        hint="seed the newest bundle, or pass --allow-older to load this one anyway",
    )


def home(registry: Api, line: Lineage, digest: str, repositories: Sequence[str], below: str = "") -> str:
    """A repository that has the blob *digest*, which a delta leaves out; empty if none has.

    It is looked for where the base had it, and in the *repositories* that need it; *below* is as for ``seed.plan``.
    Raises RegistryError.
    """
    reference = parse(line.left_out[digest])  # None for a program, which no registry has
    base = [f"{below}{repository_prefix(reference.host)}/{reference.path}"] if reference else []
    return next((one for one in (*base, *repositories) if registry.has_blob(one, digest)), "")


def lacking(line: Lineage, digests: Iterable[str]) -> BundleError:
    """That the registry has none of *digests*, which a delta leaves out."""
    found = [f"  {digest} of {line.left_out[digest]}" for digest in sorted(digests)]
    return base_missing(
        f"the registry lacks {counted(len(found), 'blob')} that the delta omits:\n" + "\n".join(found),
        hint=f"seed its base bundle first, the one with index {line.base}",
    )


def kept(registry: Api, repository: str, digest: str, offset: int, size: int) -> BinaryIO:
    """At most *size* bytes of a blob that *repository* has, from byte *offset* on.

    Raises RegistryError, also if it has it no more (ImageMissing).
    """
    content = registry.piece(repository, digest, offset, size)
    if content is None:
        raise RegistryError(
            f"{repository}@{digest}, which the delta omits, cannot be read in the registry", code="ImageMissing",
            hint="verify the images with `images check`; what is lost, `recover` loads again from the base bundle",
        )  # fmt: skip
    return io.BytesIO(content)


def blame(bundle: Bundle, blob: oci.Descriptor, error: RegistryError) -> Error:
    """Why a registry does not take a blob: *error*, or that the bundle's bytes are not those of the digest."""
    if not error.temporary and bundle.layout.has(blob.digest):
        try:
            with bundle.layout.blob(blob) as content:
                while content.read(oci.CHUNK):
                    pass
        except BundleError as flaw:
            return flaw
    return error
