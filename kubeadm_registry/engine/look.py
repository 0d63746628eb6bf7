"""A look at all hosts before anything is changed: most runs find nothing to do, and then this is all that they do.

A run works phase by phase, for a change may alter what the next one finds. While nothing changes all of it can be asked
at once, and what several phases want to know is asked once.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from kubeadm_registry.cluster import Cluster
from kubeadm_registry.engine.changes import Change
from kubeadm_registry.engine.phase import Phase
from kubeadm_registry.errors import Error
from kubeadm_registry.result import Result
from kubeadm_registry.transport.host import Host, Transport

#: Questions to one host at a time: a shell answers them one by one, and the registry does not.
WORKERS = 16


def first_to_differ(selected: Sequence[tuple[str, Phase]], cluster: Cluster) -> int:
    """The place in *selected* of the first phase that would change anything, or cannot tell; its length if none would.

    Nothing is changed. What went wrong is not told: the run comes upon it again, and says where.
    """
    hosts = tuple(replace(host, transport=_Remembering(host.transport), read_only=True) for host in cluster.hosts)
    cluster = replace(cluster, hosts=hosts)
    first = _Least(len(selected))

    def differs(place: int, change: Change, host: Host) -> None:
        if place < first.value:
            try:
                if change.diff(host) is not None:
                    first.lower(place)
            except Error:
                first.lower(place)

    with ThreadPoolExecutor(WORKERS * len(hosts)) as pool:

        def walk(place: int, phase: Phase, host: Host) -> list[Future[None]]:
            assert phase.steps is not None  # noqa: S101  see below
            asked = []
            try:
                for change in phase.steps(cluster, host):
                    asked.append(pool.submit(differs, place, change, host))
            except Error:
                first.lower(place)
            return asked

        walks = [
            pool.submit(walk, place, phase, host)
            for place, (_, phase) in enumerate(selected)
            if phase.steps is not None
            for host in phase.on(cluster)
        ]
        for asked in [one.result() for one in walks]:
            for one in asked:
                one.result()
    return first.value


class _Least:
    """The least of the numbers that threads found."""

    def __init__(self, value: int) -> None:
        self.value = value
        self._lock = threading.Lock()

    def lower(self, value: int) -> None:
        with self._lock:
            self.value = min(self.value, value)


class _Remembering:
    """A Transport that asks each question once, and does nothing else."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._lock = threading.Lock()
        self._asked: dict[tuple[tuple[str, ...], bytes], Future[Result]] = {}

    def run(self, argv: Sequence[str], *, stdin: bytes = b"", timeout: float = 60) -> Result:
        """What the host said, when it was asked first. Raises what that raised."""
        key = (tuple(argv), stdin)
        with self._lock:
            known = self._asked.get(key)
            answer = self._asked.setdefault(key, Future())
        if known is None:
            try:
                answer.set_result(self._transport.run(argv, stdin=stdin, timeout=timeout))
            except BaseException as error:
                answer.set_exception(error)
        return answer.result()

    def dial(self, address: str, port: int) -> tuple[str, int]:
        """As the host's own."""
        return self._transport.dial(address, port)

    def upload(self, source: Path, path: str) -> None:
        """Never: this is for looking."""
        raise AssertionError(f"a look uploads {path}")

    def lock(self, who: str) -> str | None:
        """Never: the run has the lock."""
        raise AssertionError(f"a look locks for {who}")

    def close(self) -> None:
        """Nothing: the connection is the run's."""
