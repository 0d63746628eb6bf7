"""Blobs that must outlive a collection although no manifest needs them yet: a manifest of our own names them.

Distribution's collection deletes whatever no manifest names, however new it is: so also the layers of an image whose
manifest is still to come.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kubeadm_registry.images.artifacts import EMPTY, EMPTY_CONTENT
from kubeadm_registry.oci import descriptors as oci
from kubeadm_registry.registry import Api, push_blob

ARTIFACT = "application/vnd.kubeadm-registry.held.v1"
#: Blobs in one manifest: 1 MB of it.
_EACH = 5000


@dataclass(frozen=True, slots=True)
class HeldBlob:
    """A blob of *size* bytes, and a repository that has it."""

    repository: str
    digest: str
    size: int


def let_go(registry: Api, repository: str) -> None:
    """Delete what an earlier run held in *repository*. Raises RegistryError."""
    for tag in registry.tags(repository):
        digest = registry.digest(repository, tag)
        if digest is not None:
            registry.delete_manifest(repository, digest)


def hold(registry: Api, repository: str, blobs: Mapping[str, HeldBlob], tag: str) -> int:
    """Name *blobs*, by digest, in manifests of *repository* whose tags begin with *tag*; how many are there at all.

    The registry must share blobs between repositories. Raises RegistryError.
    """
    there = [one for _, one in sorted(blobs.items()) if _mounted(registry, repository, one)]
    if not there:
        return 0
    push_blob(registry, repository, EMPTY.digest, EMPTY_CONTENT)
    for begin in range(0, len(there), _EACH):
        layers = tuple(
            oci.Descriptor(media_type=oci.LAYER, digest=one.digest, size=one.size)
            for one in there[begin : begin + _EACH]
        )
        manifest = oci.Manifest(artifact_type=ARTIFACT, config=EMPTY, layers=layers)
        registry.push_manifest(repository, f"{tag}-{begin // _EACH}", manifest.to_json(), oci.MANIFEST)
    return len(there)


def _mounted(registry: Api, repository: str, blob: HeldBlob) -> bool:
    location = registry.begin_upload(repository, mount=blob.digest, source=blob.repository)
    if location:
        registry.cancel_upload(location)
    return not location
