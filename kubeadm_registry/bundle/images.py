"""Images that are copied into a bundle from OCI image layouts on this machine."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from kubeadm_registry.bundle import oci
from kubeadm_registry.bundle.failures import refused
from kubeadm_registry.bundle.layout import Layout
from kubeadm_registry.bundle.programs import REFERENCE

#: HOST/PATH:TAG or HOST/PATH@DIGEST, where HOST has a dot or a port, or is localhost: the reference grammar of
#: https://github.com/distribution/reference, without its short forms.
FULL_NAME = re.compile(
    r"(?=[^/]*[.:]|localhost/)[A-Za-z0-9]+([.-]+[A-Za-z0-9]+)*(:[0-9]{1,5})?"
    r"(/[a-z0-9]+((\.|__?|-+)[a-z0-9]+)*)+"
    r"(?P<tag>:[A-Za-z0-9_][A-Za-z0-9._-]{0,127})?(?P<digest>@sha256:[0-9a-f]{64})?"
)


@dataclass(frozen=True, slots=True)
class FromLayout:
    """The images of an OCI image layout, a directory or a tar file; *name* is the image's if it holds only one."""

    path: Path
    name: str = ""


def image_name(annotations: Mapping[str, str] | None) -> str:
    """Return the full name that a descriptor in an index carries, or nothing."""
    annotations = annotations or {}
    return annotations.get(oci.CONTAINERD_NAME) or annotations.get(oci.REFERENCE_NAME, "")


def is_full_name(name: str) -> bool:
    """Say whether *name* has a registry's host, a path, and a tag or a digest: one that every client reads alike."""
    found = FULL_NAME.fullmatch(name) if len(name) <= 512 else None
    return bool(found and (found["tag"] or found["digest"]))


def images_in(layout: Layout, name: str = "") -> Iterator[tuple[str, oci.Descriptor]]:
    """Give the full name and the descriptor of each image in *layout*.

    *name* replaces the name of the only image. Raises BundleError for an image without a full name.
    """
    found = [entry for entry in layout.index.manifests if not image_name(entry.annotations).startswith(REFERENCE)]
    if name and len(found) != 1:
        raise refused(
            f"{layout.where} has {len(found)} images, so {name} names none of them", hint="leave out the name"
        )
    for entry in found:
        full = name or image_name(entry.annotations)
        if not is_full_name(full):
            raise refused(
                f"{layout.where}: {full or entry.digest} is not the full name of an image",
                hint="save the image under a name with registry and tag, such as registry.k8s.io/pause:3.10",
            )
        if entry.media_type not in oci.INDEXES | oci.MANIFESTS:
            raise refused(f"{layout.where}: {full} is {entry.media_type}, not an image", hint="save it in OCI's format")
        yield full, entry.model_copy(update={"annotations": {oci.REFERENCE_NAME: full}})
