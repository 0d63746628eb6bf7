"""Records in the registry that only who knows a secret of the nodes can write: small artifacts, each under a tag.

The layer is the compressed record. An annotation has the HMAC-SHA256 of the tag and the layer, so whoever may push can
destroy a record, and can neither change what it says nor put one in the place of another.
"""

from __future__ import annotations

import gzip
import hmac
import zlib
from dataclasses import dataclass

from kubeadm_registry.errors import BundleError, Error
from kubeadm_registry.formats import Damaged
from kubeadm_registry.images import artifacts
from kubeadm_registry.registry import Api

REPOSITORY = "kubeadm-registry/retention"
MAC = "dev.kubeadm-registry.retention.hmac"
#: Bytes of a record at most: that of a hundred thousand tags takes some 40 MB.
LARGEST = 512 * 1024 * 1024
#: Bytes of it compressed at most; digests hardly compress.
_LARGEST_LAYER = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Record:
    """A record under *tag*, called *name* in messages; *hint* is what to do about one that is damaged.

    *bound*: the HMAC is of the tag as well.
    """

    tag: str
    name: str
    code: str
    hint: str
    bound: bool = True

    @property
    def artifact(self) -> str:
        """Its artifact type."""
        return f"application/vnd.kubeadm-registry.retention.{self.tag}.v1"

    def read(self, registry: Api, key: str) -> bytes | None:
        """What was written under *key*; None before the first. Raises RegistryError, and Error if it is damaged."""
        try:
            found = artifacts.read(registry, REPOSITORY, self.tag, most=_LARGEST_LAYER)
            if found is None:
                return None
            annotations, packed = found
            if not hmac.compare_digest(self._mac(key, packed), annotations.get(MAC, "")):
                raise Damaged("it was not written by a node of this registry")
            return _unpacked(packed)
        except (ValueError, BundleError) as error:
            raise self.damaged(error) from error

    def write(self, registry: Api, key: str, content: bytes) -> None:
        """Write *content* under *key* in place of what is there. Raises RegistryError."""
        packed = gzip.compress(content, compresslevel=6, mtime=0)
        artifacts.write(
            registry, REPOSITORY, self.tag, packed, kind=self.artifact, media_type=f"{self.artifact}+gzip",
            annotations={MAC: self._mac(key, packed)},
        )  # fmt: skip

    def damaged(self, error: Exception) -> Error:
        """The error for a record that cannot be read because of *error*."""
        return Error(f"{self.name} {REPOSITORY}:{self.tag} is damaged: {error}", code=self.code, hint=self.hint)

    def _mac(self, key: str, content: bytes) -> str:
        head = f"{self.tag}\n".encode() if self.bound else b""
        return hmac.digest(key.encode(), head + content, "sha256").hex()


def _unpacked(packed: bytes) -> bytes:
    """The content of *packed*. Raises Damaged if it is no gzip, or too large."""
    reader = zlib.decompressobj(wbits=31)
    try:
        content = reader.decompress(packed, LARGEST)
    except zlib.error as error:
        raise Damaged(f"it cannot be unpacked: {error}") from error
    if not reader.eof:
        raise Damaged(f"it is cut off, or has more than {LARGEST} bytes")
    return content
