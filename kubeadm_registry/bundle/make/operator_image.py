"""The operator's image: the tree of this program, which the bundle has anyway, as the one layer of an image.

So it costs a bundle some hundred bytes, and is as reproducible as the tree. Nothing but Python is in it: no shell, no
passwd, no CA certificates. Source of the formats: https://github.com/opencontainers/image-spec, config.md.
"""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import dataclass
from pathlib import Path

from kubeadm_registry.bundle.make.tool import operator_command
from kubeadm_registry.bundle.programs import Program
from kubeadm_registry.bundle.tool import OPERATOR_IMAGE, operator_tag
from kubeadm_registry.oci import descriptors as oci

#: Of no meaning but that it is not 0: what distroless images call "nonroot".
USER = 65532
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Image:
    """An image called *name*: its *config* and *manifest*; the layer is that of the program."""

    name: str
    config: bytes
    manifest: bytes

    @property
    def descriptor(self) -> oci.Descriptor:
        """What an index says of it."""
        return oci.Descriptor(
            media_type=oci.MANIFEST, digest=oci.digest_of(self.manifest), size=len(self.manifest),
            annotations={oci.REFERENCE_NAME: self.name},
        )  # fmt: skip


def image_of(program: Program, layer: Path) -> Image:
    """The image of *program*, this program itself, whose tree is in the tar.gz *layer*."""
    config = oci.canonical(
        {
            "architecture": program.architecture,
            "os": "linux",
            "config": {
                "User": f"{USER}:{USER}",
                "Entrypoint": operator_command(program.architecture),
                # Who has no entry in passwd has no name and no home either, for which libraries ask.
                "Env": ["PATH=/bin", "LANG=C.UTF-8", "PYTHONHOME=/", "HOME=/tmp", "USER=operator"],
                "WorkingDir": "/",
                "Labels": {"org.opencontainers.image.version": program.version},
            },
            "rootfs": {"type": "layers", "diff_ids": [_unpacked_digest(layer)]},
        }
    )
    manifest = oci.Manifest(
        config=oci.Descriptor(media_type=oci.CONFIG, digest=oci.digest_of(config), size=len(config)),
        layers=(program.layer,),
    ).to_json()
    return Image(f"{OPERATOR_IMAGE}:{operator_tag(program.version)}", config, manifest)


def _unpacked_digest(layer: Path) -> str:
    """The digest of the tar in *layer*, by which an image names its layers."""
    hashed = hashlib.sha256()
    with gzip.open(layer) as content:
        while piece := content.read(_CHUNK):
            hashed.update(piece)
    return f"sha256:{hashed.hexdigest()}"
