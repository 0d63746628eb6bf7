"""The known object: a small image whose every byte follows from this file, so that all know its digests.

Its layer does not compress and is larger than what Garage keeps in its metadata (3072 bytes), so reading it proves that
the disks answer, not only the index. The agent of every server reads it all the time; ``verify`` pushes it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cache

REPOSITORY = "kubeadm-registry/canary"
TAG = "v1"
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
_LAYER_SIZE = 128 * 1024


@dataclass(frozen=True, slots=True)
class Blob:
    """Bytes and what an OCI descriptor says of them."""

    media_type: str
    content: bytes

    @property
    def digest(self) -> str:
        """``sha256:...``."""
        return _digest(self.content)

    def descriptor(self) -> dict[str, object]:
        """The OCI content descriptor."""
        return {"mediaType": self.media_type, "digest": self.digest, "size": len(self.content)}


@cache  # the settings of each agent name them
def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


_NOISE = b"".join(hashlib.sha256(b"kubeadm-registry canary %d" % i).digest() for i in range(_LAYER_SIZE // 32))
LAYER = Blob("application/vnd.oci.image.layer.v1.tar", _NOISE)
CONFIG = Blob(
    "application/vnd.oci.image.config.v1+json",
    json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": [LAYER.digest]},
            "config": {"Labels": {"dev.kubeadm-registry": "read by the node agents; do not delete"}},
        },
        sort_keys=True,
    ).encode(),
)
MANIFEST = Blob(
    MANIFEST_TYPE,
    json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": CONFIG.descriptor(),
            "layers": [LAYER.descriptor()],
        },
        sort_keys=True,
    ).encode(),
)
