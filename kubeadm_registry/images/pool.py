"""Several threads that ask a registry, each over a connection of its own."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import partial
from types import TracebackType
from typing import Self, TypeVar

from kubeadm_registry.registry import Api

#: Large blobs at a time. More do not help on a network of servers, and a small registry has other work as well.
WORKERS = 6
#: Small requests at a time, for each large blob: where the way is long, there is mostly waiting.
SMALL_FOR_LARGE = 3
#: Seconds that the registry may take nothing: longer than a writer needs to move.
PATIENCE = 120.0

Connect = Callable[[], AbstractContextManager[Api]]
"""Opens a connection to the registry, for one thread."""
Thing = TypeVar("Thing")
Outcome = TypeVar("Outcome")


def few(workers: int, count: int) -> int:
    """How many connections *count* images are looked for with, where *workers* large blobs go at a time: to open one
    costs as much as some images."""
    return min(workers * SMALL_FOR_LARGE, 1 + count // 3)


class WorkerPool:
    """*workers* threads, each with a connection of its own, which it opens when it is first needed.

    A context manager: at its end what has begun ends as well, and no more begins.
    """

    def __init__(self, connect: Connect, workers: int) -> None:
        self._connect = connect
        self._pool = ThreadPoolExecutor(max_workers=workers)
        self._guard = threading.Lock()
        self._connections = contextlib.ExitStack()
        self._local = threading.local()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._connections:
            self._pool.shutdown(cancel_futures=True)

    def each(self, work: Callable[[Api, Thing], Outcome], what: Collection[Thing]) -> list[tuple[Thing, Outcome]]:
        """Do *work* with each of *what*, and return what came of each. Raises the first error."""
        return list(zip(what, self._pool.map(partial(self._one, work), what), strict=True))

    def _one(self, work: Callable[[Api, Thing], Outcome], thing: Thing) -> Outcome:
        if not hasattr(self._local, "registry"):
            with self._guard:
                self._local.registry = self._connections.enter_context(self._connect())
        return work(self._local.registry, thing)


def each(
    connect: Connect, work: Callable[[Api, Thing], Outcome], what: Collection[Thing]
) -> list[tuple[Thing, Outcome]]:
    """Do *work* with each of *what* by a pool of its own."""
    with WorkerPool(connect, WORKERS) as pool:
        return pool.each(work, what)
