"""Where images for a bundle come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from kubeadm_registry.bundle.layout import Layout
from kubeadm_registry.bundle.make.context import BuildContext
from kubeadm_registry.oci import descriptors as oci


class ImageSource(Protocol):
    """Something that images come from."""

    def open(self, context: BuildContext, platforms: Sequence[oci.Platform]) -> Layout:
        """Its images as a layout, each under its full name; what is fetched is fetched for *platforms* (none: all).

        Raises BundleError, or RegistryError where it is a registry.
        """


@dataclass(frozen=True, slots=True)
class FromLayout:
    """The images of an OCI image layout, a directory or a tar file, with a *name* as for ``images_in``."""

    path: Path
    name: str = ""

    def open(self, context: BuildContext, platforms: Sequence[oci.Platform]) -> Layout:
        """The layout itself."""
        return Layout.open(self.path)
