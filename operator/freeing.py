"""When the operator frees space, and how: by the steps that the nodes' helpers do, in the order of `images collect`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kubeadm_registry.access.collecting import Member
from kubeadm_registry.cluster import Cluster
from kubeadm_registry.config import RegistryCluster
from kubeadm_registry.engine.report import Action
from kubeadm_registry.errors import ConnectionFailed, Error, Problem
from kubeadm_registry.images.pool import Connect
from kubeadm_registry.operator.conditions import Verdict, failure, rfc3339
from kubeadm_registry.operator.objects import Objects
from kubeadm_registry.operator.plans import size
from kubeadm_registry.phases import space
from kubeadm_registry.phases.space import Space
from kubeadm_registry.printable import Level, counted
from kubeadm_registry.result import Result
from kubeadm_registry.retention.history import History
from kubeadm_registry.secrets import Vault
from kubeadm_registry.transport.commands import Ran
from kubeadm_registry.transport.host import Host

KIND = "SpaceFreed"
#: Seconds between two times, and after one that failed: pushes may have waited for it.
DAILY, AGAIN = 86400.0, 3600.0
log = logging.getLogger("kubeadm_registry.operator")


def due(last: float | None, history: History, *, filling: bool, now: float) -> bool:
    """Whether to free space at *now*, after the *last* time began: some image has gone for good since by the *history*,
    or a disk is *filling*; and that was a day ago, or is in the future, by a clock that was wrong."""
    if last is not None and 0 <= now - last < DAILY:
        return False
    return filling or any(run.purged and run.ended >= (last or 0) for run in history.runs)


def failed(found: Mapping[str, Any]) -> bool:
    """Whether the RegistryCluster *found* says that no space could be freed."""
    said = found.get("status", {}).get("conditions", ())
    return any(one["type"] == KIND and one["status"] == "False" for one in said)


@dataclass(frozen=True, slots=True)
class Freed:
    """What came of it: the condition, and the record for the status of the cluster, None if it failed."""

    verdict: Verdict
    report: dict[str, Any] | None


def complete(config: RegistryCluster, members: Sequence[Member]) -> Verdict | None:
    """Complete what an operator that ended has left pending at the nodes *members*: the condition, None if nothing."""
    try:
        done = space.complete(_cluster(config), members, _Log())
    except Error as error:
        if error.code in ("HostBusy", "CollectionBusy"):
            return None  # somebody else frees space just now
        return failure(KIND, False, error)
    text = "an operator ended while it freed space; the rest was completed, and pushes are open"
    return Verdict(KIND, True, "Completed", text) if done else None


def free(config: RegistryCluster, members: Sequence[Member], connect: Connect, clock: Callable[[], float]) -> Freed:
    """Free the space of what no manifest needs, at the nodes *members*; *connect* leads to the registry."""
    began = clock()
    try:
        done = space.free(_cluster(config), members, connect, space.GRACE, _Log())
    except Error as error:
        return Freed(failure(KIND, False, error), None)
    return Freed(Verdict(KIND, True, "Freed" if done.blobs else "NothingToFree", _said(done)), {
        "began": rfc3339(began), "ended": rfc3339(clock()), "beforeBytes": done.before, "afterBytes": done.after,
        "freedBytes": done.bytes, "blobs": done.blobs, "kept": done.kept, "closedSeconds": round(done.closed),
    })  # fmt: skip


def note(objects: Objects, name: str, report: Mapping[str, Any]) -> None:
    """Write *report* into the status of the cluster *name* now: the next round of health may be another operator's,
    which would free space again on the same day. Raises Lost."""
    for _ in range(2):
        # That round writes it as well, and it may be what has just changed the object.
        with suppress(ConnectionFailed):
            for found in objects.list("registryclusters"):
                if found["metadata"]["name"] == name:
                    objects.put_status("registryclusters", found, {**found.get("status", {}), "space": report})
            return


def _said(done: Space) -> str:
    kept = f"; {counted(done.kept, 'blob')} stay for now, because pushes relied on them" if done.kept else ""
    closed = f", pushes waited for {done.closed:.0f} s" if done.closed else ""
    freed = f"freed {size(done.bytes)} in {counted(done.blobs, 'blob')}"
    return f"{freed}{closed}; {size(done.before)} were stored before, {size(done.after)} are now{kept}"


def _cluster(config: RegistryCluster) -> Cluster:
    """The cluster as the workflow wants it: nodes on which nothing is run, since all that is done are steps."""
    hosts = tuple(Host(node.name, node.address, _Nothing()) for node in config.spec.nodes)
    vault = Vault(config.metadata.name, [node.name for node in config.spec.nodes], {})
    return Cluster(config, hosts, vault, {})


class _Nothing:
    """A Transport to a node of whose helper only can be asked: what an engine does around each run is not needed."""

    def run(self, argv: Sequence[str], *, stdin: bytes = b"", timeout: float = 60) -> Result:
        """Nothing."""
        return Result(tuple(argv), 0, b"")

    def upload(self, source: Path, path: str) -> None:
        """Never."""
        raise AssertionError(f"nothing can be uploaded to a helper: {path}")

    def lock(self, who: str) -> str | None:
        """Each step locks its node itself."""
        return None

    def dial(self, address: str, port: int) -> tuple[str, int]:
        """There."""
        return address, port

    def close(self) -> None:
        """Nothing."""


class _Log:
    """A Reporter for the log of the operator."""

    def phase(self, path: str, summary: str) -> None:
        """Which one begins."""
        log.info("space: %s: %s", path, summary)

    def note(self, text: str, *, host: str = "", level: Level = "info") -> None:
        """What is worth knowing."""
        grade = logging.WARNING if level == "warning" else logging.INFO
        log.log(grade, "space: %s%s", f"{host}: " if host else "", text)

    def action(self, action: Action, *, dry_run: bool) -> None: ...
    def done(self, action: Action, seconds: float) -> None: ...
    def deferred(self, path: str, host: str, reason: str) -> None: ...
    def problem(self, problem: Problem) -> None: ...
    def check(self, host: str, name: str, *, ok: bool) -> None: ...
    def command(self, ran: Ran) -> None: ...
    def progress(self, done: int, total: int) -> None: ...
    def error(self, error: Error) -> None: ...
    def result(self, summary: str, **facts: object) -> None: ...
