"""What a registry knows of the bundles that it was given, and the blobs that a delta takes from it.

For each line of bundles (a full one and its deltas) the registry keeps a small artifact that says which was seeded
last. A delta goes on top of its own base only, so an older one that somebody replays is noticed.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from kubeadm_registry.bundle import Bundle, oci
from kubeadm_registry.bundle.failures import base_missing, damaged
from kubeadm_registry.bundle.lineage import Lineage
from kubeadm_registry.errors import BundleError, Error, RegistryError
from kubeadm_registry.references import parse, repository_prefix
from kubeadm_registry.registry import Registry

REPOSITORY = "kubeadm-registry/bundle"
ARTIFACT = "application/vnd.kubeadm-registry.bundle.v1"
_INDEX = "dev.kubeadm-registry.bundle.index"
_SEQUENCE = "dev.kubeadm-registry.bundle.sequence"
_EMPTY = b"{}"


@dataclass(frozen=True, slots=True)
class Record:
    """The bundle of a line that was seeded last: the digest of its index, and how many came before it."""

    index: str
    sequence: int


def tag(line: Lineage) -> str:
    """The tag of the record of a line, which is known by its first bundle."""
    return f"line-{line.root.removeprefix('sha256:')}"


def read(registry: Registry, line: Lineage) -> Record | None:
    """The record of a line; None if nothing of it was seeded. Raises RegistryError, BundleError."""
    content = registry.manifest(REPOSITORY, tag(line))
    if content is None:
        return None
    what = f"{REPOSITORY}:{tag(line)} in the registry"
    said = oci.parse(oci.Manifest, content, what).annotations or {}
    if not said.get(_SEQUENCE, "").isdecimal():
        raise damaged(f"{what} does not say which bundle was seeded", hint="delete that tag, and seed the base again")
    return Record(said.get(_INDEX, ""), int(said[_SEQUENCE]))


def write(registry: Registry, line: Lineage) -> None:
    """Note in the registry that the bundle was seeded. Raises RegistryError."""
    empty = oci.Descriptor(media_type=oci.EMPTY, digest=oci.digest_of(_EMPTY), size=len(_EMPTY))
    manifest = oci.Manifest(
        artifact_type=ARTIFACT,
        config=empty,
        layers=(empty,),
        annotations={_INDEX: line.index, _SEQUENCE: str(line.sequence)},
    )
    registry.push_blob(REPOSITORY, empty.digest, _EMPTY)
    registry.push_manifest(REPOSITORY, tag(line), manifest.to_json(), oci.MANIFEST)


def judge(line: Lineage, record: Record | None) -> None:
    """Whether a bundle may follow on what was seeded: its base, or itself. Raises BundleError.

    Without a record anything may: what the registry lacks is found out by ``take``.
    """
    if record is None or record.index in (line.index, line.base):
        return
    if line.sequence > record.sequence:
        raise base_missing(
            f"the delta was made since the bundle {line.base}, and the last one of its line that was seeded is "
            f"{record.index}",
            hint="seed the bundle that it was made since first",
        )
    raise BundleError(
        f"the bundle is number {line.sequence} of its line, and number {record.sequence} was seeded after it "
        f"({record.index})",
        code="BundleReplayed",
        hint="seed the newest one; to go back to this one on purpose, give --allow-older",
    )


def home(registry: Registry, line: Lineage, digest: str, repositories: Sequence[str]) -> str:
    """A repository that has the blob *digest*, which a delta leaves out; empty if none has.

    It is looked for where the base had it, and in the *repositories* that need it. Raises RegistryError.
    """
    reference = parse(line.left_out[digest])  # None for a program, which no registry has
    base = [f"{repository_prefix(reference.host)}/{reference.path}"] if reference else []
    return next((one for one in (*base, *repositories) if registry.has_blob(one, digest)), "")


def lacking(line: Lineage, digests: Iterable[str]) -> BundleError:
    """That the registry has none of *digests*, which a delta leaves out."""
    found = [f"  {digest} of {line.left_out[digest]}" for digest in sorted(digests)]
    return base_missing(
        f"the registry lacks {len(found)} blobs that the delta leaves out:\n" + "\n".join(found),
        hint=f"seed the bundle that it was made since first: the one whose index is {line.base}",
    )


def kept(registry: Registry, repository: str, digest: str, offset: int, size: int) -> BinaryIO:
    """At most *size* bytes of a blob that *repository* has, from byte *offset* on. Raises RegistryError."""
    return io.BytesIO(registry.piece(repository, digest, offset, size) or b"")


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
