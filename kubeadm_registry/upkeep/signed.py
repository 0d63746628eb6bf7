"""Records in the registry that only who knows a secret of the nodes can write: small artifacts, each under a tag.

The layer is the compressed record. An annotation has the HMAC-SHA256 of the tag and the layer, so whoever may push can
destroy a record, and can neither change what it says nor put one in the place of another.
"""

from __future__ import annotations

import hmac
import io
import time
import zlib
from collections.abc import Iterable
from dataclasses import dataclass

from kubeadm_registry.errors import BundleError, Error, RegistryError
from kubeadm_registry.formats import Damaged
from kubeadm_registry.images import artifacts
from kubeadm_registry.images.absence import expect_canary, out_of_reach
from kubeadm_registry.registry import Api

REPOSITORY = "kubeadm-registry/retention"
MAC = "dev.kubeadm-registry.retention.hmac"
#: When it was written, in nanoseconds since 1970: the executor deletes earlier records by their digest, and one with
#: the content of an earlier one must not have that.
_WRITTEN = "dev.kubeadm-registry.retention.written"
#: Bytes of a record at most: that of a hundred thousand tags takes some 40 MB.
LARGEST = 512 * 1024 * 1024
#: Bytes of it compressed at most; digests hardly compress.
_LARGEST_LAYER = 256 * 1024 * 1024
#: What zlib calls a window of 32 KiB with the header and trailer of gzip.
_GZIP = 16 + zlib.MAX_WBITS


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
        """What was written under *key*; None before the first.

        Raises RegistryError, also if it may only be out of reach, and Error if it is damaged.
        """
        try:
            found = artifacts.read(registry, REPOSITORY, self.tag, most=_LARGEST_LAYER)
            if found is None:
                self._expect_none(registry)
                return None
            annotations, packed = found
            if not hmac.compare_digest(self._mac(key, packed).encode(), annotations.get(MAC, "").encode()):
                raise Damaged("it was not written by a node of this registry")
            return _unpacked(packed)
        except artifacts.LayerMissing as error:
            raise self._out_of_reach() from error
        except (ValueError, BundleError) as error:
            raise self.damaged(error) from error

    def write(self, registry: Api, key: str, content: bytes | Iterable[bytes]) -> str:
        """Write *content*, which may come in pieces, under *key* in place of what is there; the artifact's digest.

        Raises RegistryError, and Error (RecordTooLarge): it could not be read again.
        """
        packed = self._packed([content] if isinstance(content, bytes) else content)
        return artifacts.write(
            registry, REPOSITORY, self.tag, packed, kind=self.artifact, media_type=f"{self.artifact}+gzip",
            annotations={MAC: self._mac(key, packed), _WRITTEN: str(time.time_ns())},
        )  # fmt: skip

    def _expect_none(self, registry: Api) -> None:
        """Raise RegistryError, a temporary one, if the record that was not found may have been written all the same.

        Whoever takes it for an empty one writes that in its place.
        """
        tags = registry.tags(REPOSITORY)
        if self.tag in tags:
            raise self._out_of_reach()
        if not tags:
            expect_canary(registry)

    def _out_of_reach(self) -> RegistryError:
        return out_of_reach(f"{self.name} {REPOSITORY}:{self.tag}", self.hint, code=self.code)

    def damaged(self, error: Exception) -> Error:
        """The error for a record that cannot be read because of *error*."""
        return Error(f"{self.name} {REPOSITORY}:{self.tag} is damaged: {error}", code=self.code, hint=self.hint)

    def _packed(self, pieces: Iterable[bytes]) -> bytes:
        """*pieces* as one gzip. Raises Error (RecordTooLarge)."""
        writer = zlib.compressobj(level=6, wbits=_GZIP)
        packed, size = io.BytesIO(), 0
        for piece in pieces:
            size += len(piece)
            packed.write(writer.compress(piece))
            if size > LARGEST or packed.tell() > _LARGEST_LAYER:
                raise Error(
                    f"{self.name} has more than {LARGEST >> 20} MiB, or {_LARGEST_LAYER >> 20} MiB compressed",
                    code="RecordTooLarge", hint="report this, with the number of images in the registry",
                )  # fmt: skip
        packed.write(writer.flush())
        return packed.getvalue()

    def _mac(self, key: str, content: bytes) -> str:
        head = f"{self.tag}\n".encode() if self.bound else b""
        return hmac.digest(key.encode(), head + content, "sha256").hex()


def _unpacked(packed: bytes) -> bytes:
    """The content of *packed*. Raises Damaged if it is no gzip, or too large."""
    reader = zlib.decompressobj(wbits=_GZIP)
    try:
        content = reader.decompress(packed, LARGEST)
    except zlib.error as error:
        raise Damaged(f"it cannot be unpacked: {error}") from error
    if not reader.eof:
        raise Damaged(f"it is cut off, or has more than {LARGEST} bytes")
    return content
