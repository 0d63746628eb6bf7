"""Frees the blobs of deleted manifests where the registry itself refuses what another manifest needs, as zot does.

zot looks under its own lock whether a manifest of the repository needs a blob, and answers 405 then. So a blob may be
tried at any time, again and in any order, and a run that was interrupted anywhere is run again. A manifest that is
pushed afterwards and needs a blob that has gone is refused (400), never accepted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from kubeadm_registry.images.pool import Connect
from kubeadm_registry.registry import Api, Deleted, retry

Blob = tuple[str, str]
"""A repository, and the digest of a blob in it."""

#: Blobs that are deleted at a time, while pushes wait, and seconds after which none more begins: in a repository of
#: many tags zot reads each of its manifests for each blob.
BATCH, LONGEST = 50, 2.0
#: Seconds that the registry may have no answer: pushes wait as long.
_PATIENCE = 10.0


@dataclass(frozen=True, slots=True)
class Freed:
    """What came of blobs: how many went, and their *bytes*; how many a manifest *needed*, and a push *relied* on."""

    blobs: int = 0
    bytes: int = 0
    needed: int = 0
    relied: int = 0

    def __add__(self, other: Freed) -> Freed:
        return Freed(
            self.blobs + other.blobs, self.bytes + other.bytes, self.needed + other.needed, self.relied + other.relied
        )


class Pace:
    """At most *rate* requests a second; *slow* says for how many seconds to wait on top of that, 0 for none.

    After requests that took long as much time is left to others: a registry that is busy slows this down by itself.
    *slow* is for what else suffers, such as the latency of etcd's fsync on the same disk.
    """

    def __init__(
        self, rate: float = 50.0, slow: Callable[[], float] = lambda: 0.0, *,
        clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep,
    ) -> None:  # fmt: skip
        self._rate = rate
        self._slow = slow
        self._clock = clock
        self._sleep = sleep
        self._free = self._begun = 0.0

    def wait(self) -> None:
        """Return when the next requests may begin."""
        if (pause := self._free - self._clock()) > 0:
            self._sleep(pause)
        while (pause := self._slow()) > 0:
            self._sleep(pause)
        self._begun = self._clock()

    def made(self, count: int) -> None:
        """As many requests were made since then."""
        now = self._clock()
        took = now - self._begun
        self._free = now + max(count / self._rate - took, took)


def free(
    connect: Connect, blobs: Mapping[Blob, int], *, relied: Callable[[], Collection[Blob]] = frozenset,
    hold: Callable[[], AbstractContextManager[object]] = nullcontext, pace: Pace | None = None,
) -> Freed:  # fmt: skip
    """Delete those of *blobs*, with their sizes in bytes, that no manifest of their repository needs.

    Within *hold* no push goes on, so what *relied* says then, the blobs on which pushes rely, is all of it: these stay.
    It is entered for a few seconds at a time. Raises RegistryError.
    """
    pace = pace or Pace()
    waiting = list(blobs)[::-1]
    total = Freed()
    with connect() as registry:
        while waiting:
            pace.wait()
            with hold():
                kept, count, ends = relied(), 0, time.monotonic() + LONGEST
                while waiting and count < BATCH and not (count and time.monotonic() > ends):
                    blob = waiting.pop()
                    count += 1
                    total += Freed(relied=1) if blob in kept else _one(registry, blob, blobs[blob])
            pace.made(count)
    return total


def _one(registry: Api, blob: Blob, size: int) -> Freed:
    outcome = retry(lambda: registry.delete_blob(*blob), _PATIENCE)
    if outcome is Deleted.GONE:
        return Freed(blobs=1, bytes=size)
    return Freed(needed=1) if outcome is Deleted.NEEDED else Freed()
