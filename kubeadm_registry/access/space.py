"""Freeing blobs one by one on a running registry: when pushes wait for it, and which blobs no manifest names."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from kubeadm_registry.cluster import Cluster
from kubeadm_registry.components import pushes, s3
from kubeadm_registry.components.services import backend
from kubeadm_registry.images import named
from kubeadm_registry.images.blobs import Blob
from kubeadm_registry.images.pool import Connect
from kubeadm_registry.retention import Manifest
from kubeadm_registry.transport.host import side_by_side
from kubeadm_registry.upkeep import reading

#: Seconds that pushes wait at most when the run dies while they do.
CLOSED = 60
#: Seconds that are read again of a log, for a line is written when a request is over.
_AGAIN = 60
_KEY = re.compile(r"^(.+)/blobs/sha256/([0-9a-f]{64})$")


class Quiet:
    """Closes pushes for moments, and knows on which blobs pushes relied in the last *grace* seconds, and since."""

    def __init__(self, cluster: Cluster, grace: float) -> None:
        self._cluster = cluster
        self._back = grace
        self._relied: set[Blob] = set()
        self._asked = 0.0

    def check(self) -> None:
        """Raises Error (PushesUnknown) where pushes cannot be closed."""
        side_by_side(pushes.look, self._cluster.hosts)

    @contextmanager
    def hold(self) -> Iterator[None]:
        """No push goes on at any node that answers. Raises Error (PushesUnknown)."""
        hosts = self._cluster.hosts
        try:
            side_by_side(lambda host: pushes.close(host, CLOSED), hosts)
            yield
        finally:
            side_by_side(pushes.reopen, hosts)

    def relied(self) -> frozenset[Blob]:
        """The blobs on which pushes relied. Raises Error (LogUnreadable)."""
        begin = time.monotonic()
        back = self._back if not self._asked else begin - self._asked + _AGAIN
        for one in side_by_side(lambda host: named.ask(host, back), self._cluster.hosts):
            self._relied |= one.blobs
        self._asked = begin
        return frozenset(self._relied)


def unnamed(cluster: Cluster, connect: Connect, grace: float) -> dict[Blob, int]:
    """The blobs older than *grace* seconds that no manifest with a tag names, and that the registry may not need.

    They are left by pushes that did not complete, and by tags that moved. Of those that an untagged manifest needs the
    registry says so when it is asked to delete them. Raises Error (StorageUnreadable), RegistryError.
    """
    host, region = cluster.leader, backend(cluster.spec).REGION
    # First what the storage has: a manifest that is pushed meanwhile is read afterwards.
    old: dict[Blob, int] = {}
    for one in s3.objects(cluster, host, region, _KEY.pattern):
        if one.age >= grace and (found := _KEY.match(one.key)):
            old[found[1], f"sha256:{found[2]}"] = one.size
    holdings = reading.read(connect, {})
    for name, held in holdings.repositories.items():
        for digest in held.manifests:
            for needed in (digest, *_needs(holdings.manifests, digest)):
                old.pop((name, needed), None)
    return {blob: size for blob, size in old.items() if blob[0] in holdings.repositories}


def _needs(manifests: Mapping[str, Manifest], digest: str) -> tuple[str, ...]:
    found = manifests[digest]
    return (*found.blobs, *found.children, *((found.config,) if found.config else ()))
