"""Where the ledger is kept: in the registry itself, as a small artifact that no other server than a node can forge.

Its layer is the compressed record. An annotation has the HMAC-SHA256 of that under a secret of the nodes, so whoever
may push can destroy the ledger, which stops retention, and cannot change what it says.
"""

from __future__ import annotations

import gzip
import hmac
import zlib

from kubeadm_registry.errors import BundleError, Error
from kubeadm_registry.formats import Damaged
from kubeadm_registry.images import artifacts
from kubeadm_registry.registry import Api
from kubeadm_registry.retention.ledger import Ledger

REPOSITORY = "kubeadm-registry/retention"
TAG = "ledger"
ARTIFACT = "application/vnd.kubeadm-registry.retention.ledger.v1"
LAYER = f"{ARTIFACT}+gzip"
MAC = "dev.kubeadm-registry.retention.hmac"
#: Bytes of a ledger at most: a hundred thousand tags take some 40 MB.
LARGEST = 512 * 1024 * 1024
#: Bytes of it compressed at most; digests hardly compress.
LARGEST_LAYER = 256 * 1024 * 1024
_HINT = (
    "only a node writes it: find out who pushed to this repository. `retention forget --ledger` begins a new one, for "
    "which everything is first seen at that moment"
)


def read(registry: Api, key: str) -> Ledger:
    """The ledger that was written under *key*; an empty one before the first. Raises RegistryError, NewerFormat, and
    Error (LedgerDamaged)."""
    where = f"{REPOSITORY}:{TAG}"
    try:
        found = artifacts.read(registry, REPOSITORY, TAG, most=LARGEST_LAYER)
        if found is None:
            return Ledger()
        annotations, packed = found
        if not hmac.compare_digest(_mac(key, packed), annotations.get(MAC, "")):
            raise Damaged("it was not written by a node of this registry")
        return Ledger.parse(_unpacked(packed))
    except (ValueError, BundleError) as error:
        raise Error(f"the retention ledger {where} is damaged: {error}", code="LedgerDamaged", hint=_HINT) from error


def write(registry: Api, key: str, ledger: Ledger) -> None:
    """Write *ledger* under *key* in place of what is there. Raises RegistryError, NewerFormat."""
    packed = gzip.compress(ledger.to_json(), compresslevel=6, mtime=0)
    artifacts.write(
        registry, REPOSITORY, TAG, packed, kind=ARTIFACT, media_type=LAYER, annotations={MAC: _mac(key, packed)}
    )


def _mac(key: str, content: bytes) -> str:
    return hmac.digest(key.encode(), content, "sha256").hex()


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
