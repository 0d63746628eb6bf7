"""The proof that images can be read, every part of them."""

from __future__ import annotations

import threading
from collections.abc import Collection, Sequence
from dataclasses import replace

from kubeadm_registry.errors import BundleError, RegistryError
from kubeadm_registry.images.pool import WORKERS, Connect, WorkerPool, few
from kubeadm_registry.images.referrers import signatures
from kubeadm_registry.images.seed.contents import Item
from kubeadm_registry.oci import descriptors as oci
from kubeadm_registry.registry import Api, retry

#: Seconds that reading an image may fail: longer than the virtual IP needs to move, and a lost blob fails each time.
_LOOK = 4.0
#: So many names cost about as much as an image that is read, as to the number of connections.
_NAMES = 6


def absent(registry: Api, item: Item, *, thorough: bool = True) -> str | None:
    """None if all of *item* can be read at *registry*; else what cannot. Raises RegistryError.

    Unless it is to be *thorough*, only its name is looked for. Else every manifest is read and compared with its
    digest, and of every blob the last byte is read: that takes the data of the storage, not only its word.
    """
    content = registry.manifest(item.repository, item.reference) if thorough else None
    digest = oci.digest_of(content) if content else registry.digest(item.repository, item.reference)
    if digest != item.root.digest:
        if not is_signed_further(registry, item):
            return f"{item.reference} is not {item.root.digest}"
        item = replace(
            item, manifests=(), blobs=tuple(blob for blob in item.blobs if blob.media_type not in oci.CONFIGS)
        )
    if not thorough:
        return None
    for manifest in item.manifests:
        if content and digest == manifest.digest:
            continue  # it was read by its tag
        if registry.manifest(item.repository, manifest.digest) is None:
            return f"manifest {manifest.digest} is missing"
    for blob in item.blobs:
        if not blob.size:  # of which there is no range, as S3 says, to which a registry may redirect
            if registry.blob(item.repository, blob.digest) is None:  # zot takes it, and does not have it then
                return f"blob {blob.digest}, which is empty, is missing; zot does not serve empty blobs"
        elif not registry.piece(item.repository, blob.digest, blob.size - 1, 1):
            return f"blob {blob.digest} is missing"
    return None


def flaw(registry: Api, item: Item, *, thorough: bool = True) -> str | None:
    """What ``absent`` says, tried for _LOOK seconds; an error of the registry that lasts as long is a flaw as well."""
    try:
        return retry(lambda: absent(registry, item, thorough=thorough), seconds=_LOOK)
    except RegistryError as error:
        return error.message


def is_signed_further(registry: Api, item: Item) -> bool:
    """Whether *item* is a tag of cosign under which the registry has all of its signatures, and others besides.

    Who has the image may sign it too, and cosign keeps all signatures of an image under one tag. Raises RegistryError.
    """
    if not item.signatures:
        return False
    try:
        content = registry.manifest(item.repository, item.reference)
        there = oci.parse(oci.Manifest, content or b"{}", item.name).layers
    except BundleError:
        return False
    return item.signatures < signatures(item.reference, lambda: there)


def prove(
    connect: Connect, items: Sequence[Item], workers: int = WORKERS, *, known: Collection[str] = (),
    stop: threading.Event | None = None,
) -> dict[str, str]:  # fmt: skip
    """The images that cannot be read where *connect* leads, and what of them. RegistryError: nobody answers there.

    Those *known* by name were read before, and are only looked for. *stop*: once it is set, no more are looked for, and
    a RegistryError is raised.
    """
    if not items:
        return {}

    def look(registry: Api, item: Item) -> str | None:
        if stop is not None and stop.is_set():
            raise RegistryError("the proof was stopped")
        return flaw(registry, item, thorough=item.name not in known)

    def greet(registry: Api, item: Item) -> None:
        # Not for /v2/ itself: the user may have a login for a repository and none for that.
        retry(lambda: registry.digest(item.repository, item.reference), seconds=10)

    whole = sum(item.name not in known for item in items)
    with WorkerPool(connect, few(workers, whole + (len(items) - whole) // _NAMES)) as pool:
        pool.each(greet, items[:1])
        return {item.name: why for item, why in pool.each(look, items) if why is not None}
