"""Images on their way into a bundle: where they come from, by which names, and for which platforms."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from kubeadm_registry.bundle import oci
from kubeadm_registry.bundle.failures import refused
from kubeadm_registry.bundle.layout import Layout
from kubeadm_registry.bundle.programs import REFERENCE
from kubeadm_registry.bundle.workshop import Workshop
from kubeadm_registry.errors import ConfigError
from kubeadm_registry.references import parse

#: BuildKit's mark of a manifest that tells about another one in the same index, which it names.
_ABOUT = "vnd.docker.reference.digest"


class ImageSource(Protocol):
    """Something that images come from."""

    def open(self, workshop: Workshop, platforms: Sequence[oci.Platform]) -> Layout:
        """Its images as a layout, each under its full name; what is fetched is fetched for *platforms* (none: all).

        Raises BundleError, or RegistryError where it is a registry.
        """


@dataclass(frozen=True, slots=True)
class FromLayout:
    """The images of an OCI image layout, a directory or a tar file; *name* is the image's if it holds only one."""

    path: Path
    name: str = ""

    def open(self, workshop: Workshop, platforms: Sequence[oci.Platform]) -> Layout:
        """The layout itself."""
        return Layout.open(self.path)


def image_name(annotations: Mapping[str, str] | None) -> str:
    """Return the full name that a descriptor in an index carries, or nothing."""
    annotations = annotations or {}
    return annotations.get(oci.CONTAINERD_NAME) or annotations.get(oci.REFERENCE_NAME, "")


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
        if not parse(full):
            raise refused(
                f"{layout.where}: {full or entry.digest} is not the full name of an image",
                hint="save the image under a name with registry and tag, such as registry.k8s.io/pause:3.10",
            )
        if entry.media_type not in oci.INDEXES | oci.MANIFESTS:
            raise refused(f"{layout.where}: {full} is {entry.media_type}, not an image", hint="save it in OCI's format")
        yield full, entry.model_copy(update={"annotations": {oci.REFERENCE_NAME: full}})


def platforms(texts: Sequence[str]) -> tuple[oci.Platform, ...]:
    """The platforms that people write as ``linux/amd64`` or ``linux/arm/v7``. Raises ConfigError."""
    found = []
    for text in texts:
        os, _, rest = text.partition("/")
        architecture, slash, variant = rest.partition("/")
        if not os or not architecture or (slash and not variant):
            raise ConfigError(
                f"--platform {text}: is not OS/ARCHITECTURE", hint="write it as linux/amd64", code="UsageError"
            )
        found.append(oci.Platform(os=os, architecture=architecture, variant=variant or None))
    return tuple(found)


def prune(content: bytes, wanted: Sequence[oci.Platform], what: str) -> bytes:
    """The index *content* with the manifests for the platforms *wanted* alone, and what is attached to these.

    It is given back byte for byte when nothing is to go. Raises BundleError if nothing would stay; *what* is its name.
    """
    index = oci.parse(oci.Index, content, what)
    kept = {entry.digest for entry in index.manifests if entry.platform is None or _fits(entry.platform, wanted)}
    kept -= {entry.digest for entry in index.manifests if _ABOUT in (entry.annotations or {})}
    if not kept:
        offered = ", ".join(sorted({str(entry.platform) for entry in index.manifests if entry.platform}))
        raise refused(
            f"{what} is not there for {', '.join(map(str, wanted))}", hint=f"choose from --platform {offered}"
        )
    kept |= {entry.digest for entry in index.manifests if (entry.annotations or {}).get(_ABOUT) in kept}
    if len(kept) == len({entry.digest for entry in index.manifests}):
        return content
    raw: dict[str, Any] = json.loads(content)
    raw["manifests"] = [entry for entry in raw["manifests"] if entry["digest"] in kept]
    return oci.canonical(raw)


def _fits(platform: oci.Platform, wanted: Sequence[oci.Platform]) -> bool:
    return any(
        (platform.os, platform.architecture) == (one.os, one.architecture)
        and (one.variant is None or platform.variant == one.variant)
        for one in wanted
    )
