"""Freeing blobs one by one on a running registry: when pushes wait for it, and which blobs no manifest names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from secrets import token_hex

from kubeadm_registry.access.collecting import Member, log_of, seen
from kubeadm_registry.agent.clock import clock
from kubeadm_registry.components.s3 import FSYNC
from kubeadm_registry.images.blobs import Blob
from kubeadm_registry.images.pool import Connect
from kubeadm_registry.retention import Manifest
from kubeadm_registry.transport.host import side_by_side
from kubeadm_registry.upkeep import reading

#: Seconds that pushes wait at most when the run dies while they do.
CLOSED = 60
#: Seconds that are read again of a log, for a line is written when a request is over.
_AGAIN = 60
#: Seconds of a pause where an etcd beside the storage needs more than FSYNC for an fsync.
PAUSE = 2.0


class Quiet:
    """Closes pushes for moments, and knows on which blobs pushes relied in the last *grace* seconds, and since."""

    def __init__(self, members: Sequence[Member], grace: float) -> None:
        self._members = members
        self._run = token_hex(8)
        self._back = grace
        self._relied: set[Blob] = set()
        self._asked = 0.0

    def check(self) -> None:
        """Raises Error (PushesUnknown) where pushes cannot be closed."""
        side_by_side(seen, self._members)

    @contextmanager
    def hold(self) -> Iterator[None]:
        """No push goes on at any node that answers. Raises Error (PushesUnknown, CollectionBusy)."""
        try:
            side_by_side(lambda one: one.do("close", run=self._run, seconds=CLOSED, again=0), self._members)
            yield
        finally:
            side_by_side(lambda one: one.do("open", run=self._run), self._members)

    def relied(self) -> frozenset[Blob]:
        """The blobs on which pushes relied. Raises Error (LogUnreadable)."""
        begin = clock()
        back = self._back if not self._asked else begin - self._asked + _AGAIN
        for one in side_by_side(lambda member: log_of(member, back), self._members):
            self._relied |= one.blobs
        self._asked = begin
        return frozenset(self._relied)

    def slow(self) -> float:
        """For how many seconds nothing more is to be deleted, since an etcd beside the storage is slow; 0: none is."""
        found = side_by_side(lambda one: one.do("fsync")["latency"], self._members)
        return PAUSE if any(one is not None and one > FSYNC for one in found) else 0.0


def unnamed(member: Member, connect: Connect, grace: float) -> dict[Blob, int]:
    """The blobs older than *grace* seconds that no manifest with a tag names, and that the registry may not need.

    They are left by pushes that did not complete, and by tags that moved. Of those that an untagged manifest needs the
    registry says so when it is asked to delete them. Raises Error (StorageUnreadable), RegistryError.
    """
    # First what the storage has: a manifest that is pushed meanwhile is read afterwards.
    old = {(one[0], one[1]): int(one[2]) for one in member.do("blobs", grace=grace)["blobs"]}
    holdings = reading.read(connect, {})
    for name, held in holdings.repositories.items():
        for digest in held.manifests:
            for needed in (digest, *_needs(holdings.manifests, digest)):
                old.pop((name, needed), None)
    return {blob: size for blob, size in old.items() if blob[0] in holdings.repositories}


def _needs(manifests: Mapping[str, Manifest], digest: str) -> tuple[str, ...]:
    found = manifests[digest]
    return (*found.blobs, *found.children, *((found.config,) if found.config else ()))
