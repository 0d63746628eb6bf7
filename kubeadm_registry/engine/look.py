"""Compares all phases on all hosts before anything is changed. Most runs find nothing to do and end with this.

A run applies phase by phase, since a change may alter what the next phase finds. As long as nothing changes, all phases
can be compared in parallel, and what several phases ask is asked once.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain

from kubeadm_registry.cluster import Cluster
from kubeadm_registry.engine.changes import (
    Change,
    Directory,
    NoService,
    Running,
    directories_ahead,
    units_ahead,
)
from kubeadm_registry.engine.memory import Memory, remembering
from kubeadm_registry.engine.phase import Phase
from kubeadm_registry.engine.users import User, users_ahead
from kubeadm_registry.errors import Error, NotYetKnown
from kubeadm_registry.transport.host import Host

#: Comparisons in parallel for one host: its shell answers one at a time, but the registry answers many.
WORKERS = 16


@dataclass(frozen=True, slots=True)
class Look:
    """The result: the phases before index *settled* have nothing to change on any host, and these are their notices."""

    settled: int
    notices: Mapping[tuple[int, str], Sequence[str]]
    """By the index of the phase and the name of the host."""


def look(selected: Sequence[tuple[str, Phase]], cluster: Cluster) -> Look:
    """Compare all hosts with the wanted states of the *selected* phases. Nothing is changed.

    Errors are not reported: a phase that fails here is not settled, and the run meets the error again, unless an
    earlier phase fixes its cause.
    """
    cluster = remembering(cluster)
    first = _Least(len(selected))
    notices: dict[tuple[int, str], Sequence[str]] = {}
    phases = [
        (place, phase, host)
        for place, (_, phase) in enumerate(selected)
        if phase.steps is not None
        for host in phase.on(cluster)
    ]

    @contextmanager
    def settling(place: int) -> Iterator[None]:
        try:
            yield
        except AssertionError:  # a phase that changes a host outside of ``apply``
            raise
        except Exception:
            first.lower(place)

    def steps(one: tuple[int, Phase, Host]) -> list[tuple[int, Change, Host]]:
        place, phase, host = one
        found: list[tuple[int, Change, Host]] = []
        with settling(place):
            found += [(place, change, host) for change in phase.changes(cluster, host)]
        return found

    def compare(one: tuple[int, Change, Host]) -> None:
        place, change, host = one
        if place < first.value:
            with settling(place):
                if change.diff(host) is not None:
                    first.lower(place)

    def tell(one: tuple[int, Phase, Host]) -> None:
        place, phase, host = one
        if place < first.value and phase.notices is not None:
            with suppress(NotYetKnown):
                notices[place, host.name] = list(phase.notices(cluster, host))

    with ThreadPoolExecutor(WORKERS * len(cluster.everyone)) as pool:
        changes = list(chain.from_iterable(pool.map(steps, phases)))
        list(pool.map(lambda host: _read_ahead(host, [one for _, one, at in changes if at is host]), cluster.everyone))
        list(pool.map(compare, changes))
        list(pool.map(tell, phases))
    return Look(first.value, notices)


@dataclass(frozen=True, slots=True)
class Difference:
    """A *change* of *phase* that is due on *host*. *text* is its diff, without secrets, or the message of *error*."""

    phase: str
    host: str
    change: Change | None
    text: str
    error: Error | None = None
    """Why the comparison failed: that of *change*, or of the whole phase if *change* is None."""


def differences(selected: Sequence[tuple[str, Phase]], cluster: Cluster) -> list[Difference]:
    """All differences between the *selected* phases and the hosts, in the order of the phases. Nothing is changed.

    Unlike a run, this continues after an error, so that each broken part is reported.
    """
    cluster = remembering(cluster)
    phases = [(path, phase, host) for path, phase in selected if phase.steps is not None for host in phase.on(cluster)]
    redact = cluster.vault.preview().redact

    def steps(one: tuple[str, Phase, Host]) -> list[tuple[str, Change | Error, Host]]:
        path, phase, host = one
        found: list[tuple[str, Change | Error, Host]] = []
        try:
            for change in phase.changes(cluster, host):
                found.append((path, change, host))
        except Error as error:
            found.append((path, error, host))
        return found

    def compare(one: tuple[str, Change | Error, Host]) -> Difference | None:
        path, change, host = one
        if isinstance(change, Error):
            return Difference(path, host.name, None, redact(change.message), change)
        try:
            text = change.diff(host)
        except Error as error:
            return Difference(path, host.name, change, redact(error.message), error)
        return None if text is None else Difference(path, host.name, change, redact(text))

    with ThreadPoolExecutor(WORKERS * max(1, len(cluster.hosts))) as pool:
        wanted = list(chain.from_iterable(pool.map(steps, phases)))
        changes = [(change, host) for _, change, host in wanted if not isinstance(change, Error)]
        list(pool.map(lambda host: _read_ahead(host, [one for one, at in changes if at is host]), cluster.hosts))
        return [found for found in pool.map(compare, wanted) if found is not None]


def _read_ahead(host: Host, changes: Sequence[Change]) -> None:
    """Read all files, directories, users and units that the *changes* on *host* will compare, with a command each."""
    files = dict.fromkeys(path for change in changes for path in getattr(change, "reads", ()))
    directories = dict.fromkeys(change.path for change in changes if isinstance(change, Directory))
    users = dict.fromkeys(change.name for change in changes if isinstance(change, User))
    units = dict.fromkeys(change.unit for change in changes if isinstance(change, Running | NoService))
    for ahead, what in (
        (Host.read_ahead, files), (directories_ahead, directories), (users_ahead, users), (units_ahead, units),
    ):  # fmt: skip
        if what and isinstance(host.transport, Memory):
            with suppress(Error):  # then each is read separately
                host.transport.learn(ahead(host, list(what)))


class _Least:
    """The smallest of the numbers that threads report."""

    def __init__(self, value: int) -> None:
        self.value = value
        self._lock = threading.Lock()

    def lower(self, value: int) -> None:
        with self._lock:
            self.value = min(self.value, value)
