"""Small artifacts that this project keeps in the registry: one layer, and a configuration that says nothing.

Source: image-spec, manifest.md, "Guidelines for Artifact Usage".
"""

from __future__ import annotations

from collections.abc import Mapping

from kubeadm_registry.formats import Damaged
from kubeadm_registry.oci import descriptors as oci
from kubeadm_registry.registry import Api, push_blob

EMPTY_CONTENT = b"{}"
EMPTY = oci.Descriptor(media_type=oci.EMPTY, digest=oci.digest_of(EMPTY_CONTENT), size=len(EMPTY_CONTENT))
#: Bytes of a layer that are read at most, as by Api.blob.
_LARGEST = 2**28


class LayerMissing(Damaged):
    """The registry does not find the layer of an artifact: zot says so as well while its storage cannot be read."""


def read(registry: Api, repository: str, tag: str, *, most: int = _LARGEST) -> tuple[Mapping[str, str], bytes] | None:
    """The annotations of the artifact *tag*, and its layer of *most* bytes at most; None if there is none.

    Raises RegistryError, BundleError, and ValueError (Damaged, LayerMissing) if it is no such artifact.
    """
    content = registry.manifest(repository, tag)
    if content is None:
        return None
    manifest = oci.parse(oci.Manifest, content, f"{repository}:{tag}")
    [layer] = manifest.layers
    found = registry.blob(repository, layer.digest, most=most)
    if found is None:
        raise LayerMissing("its layer is missing")
    return manifest.annotations or {}, found


def write(
    registry: Api, repository: str, tag: str, content: bytes, *, kind: str, media_type: str,
    annotations: Mapping[str, str],
) -> str:  # fmt: skip
    """Push an artifact of the type *kind* with the layer *content* in place of *tag*, and return its digest.

    Raises RegistryError.
    """
    layer = oci.Descriptor(media_type=media_type, digest=oci.digest_of(content), size=len(content))
    push_blob(registry, repository, layer.digest, content)
    push_blob(registry, repository, EMPTY.digest, EMPTY_CONTENT)
    manifest = oci.Manifest(artifact_type=kind, config=EMPTY, layers=(layer,), annotations=annotations).to_json()
    registry.push_manifest(repository, tag, manifest, oci.MANIFEST)
    return oci.digest_of(manifest)
