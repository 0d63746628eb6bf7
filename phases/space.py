"""Free the space of deleted images: `images collect`, and what the operator does after it has deleted some for good."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from kubeadm_registry.access import space
from kubeadm_registry.access.collecting import Member, log_of
from kubeadm_registry.cluster import Cluster
from kubeadm_registry.components.services import frontend
from kubeadm_registry.engine.report import Reporter
from kubeadm_registry.engine.workflow import run
from kubeadm_registry.errors import Error
from kubeadm_registry.images import blobs
from kubeadm_registry.images.pool import Connect
from kubeadm_registry.images.push_log import PushLog
from kubeadm_registry.phases import workflows
from kubeadm_registry.phases.collect import Collection
from kubeadm_registry.printable import counted
from kubeadm_registry.transport.host import side_by_side

GRACE = 86400.0
"""Seconds for which stays what a push relied on."""


@dataclass(frozen=True, slots=True)
class Space:
    """What came of it: *bytes* of *blobs* that were freed (in a dry run: would be at most), how many were *kept* since
    pushes rely on them; the bytes that are stored *before* and *after*; for how many seconds pushes were *closed*."""

    blobs: int
    bytes: int
    kept: int
    before: int
    after: int
    closed: float = 0.0

    def summary(self) -> str:
        """The same in a line."""
        closed = f", pushes were closed for {self.closed:.1f} s" if self.closed else ""
        freed = f"freed {self.bytes / 1e6:.1f} MB in {counted(self.blobs, 'blob')}"
        return f"{freed}; {self.after / 1e6:.1f} MB stored{closed}"


def free(
    cluster: Cluster, members: Sequence[Member], connect: Connect, grace: float, reporter: Reporter, *,
    dry_run: bool = False,
) -> Space:  # fmt: skip
    """Delete the blobs that no manifest needs and on which no push relied within *grace* seconds.

    *members* are the nodes of *cluster*, all of them; *connect* leads to the registry with the right to delete. It can
    be interrupted at any moment and run again. Raises Error (StorageNotWhole, and what the steps raise).
    """
    leader = members[0]
    names = [member.name for member in members]
    side_by_side(lambda one: one.do("whole", members=names), members)
    before = _stored(leader)
    if not dry_run and (count := leader.do("abandon")["uploads"]):
        reporter.note(f"dropped {counted(count, 'upload')} that began more than a week ago")
    if frontend(cluster.spec).FREES_BLOBS:
        _tell(side_by_side(lambda one: log_of(one, grace), members), members, grace, reporter)
        found = space.unnamed(leader, connect, grace)
        freed = blobs.Freed(blobs=len(found), bytes=sum(found.values()))
        if not dry_run:
            freed = one_by_one(members, connect, found, grace)
        return Space(freed.blobs, freed.bytes, freed.relied, before, before if dry_run else _stored(leader))
    one = Collection(cluster, members, grace)
    _tell(one.look(), members, grace, reporter)
    if one.blobs or one.pending:
        _carry_out(one, reporter, dry_run=dry_run)
    closed = max(0.0, one.opened - one.closed) if one.closed else 0.0
    count, size = (one.blobs, one.bytes) if dry_run else (one.deleted, one.freed)
    return Space(count, size, one.kept, before, before if dry_run else _stored(leader), closed)


def complete(cluster: Cluster, members: Sequence[Member], reporter: Reporter) -> bool:
    """Open pushes where a run that died has left them closed; whether there were any.

    Nothing is done unless all *members* say so. It can be interrupted at any moment and run again. Raises Error
    (HostBusy, CollectionBusy: that run has not died).
    """
    if frontend(cluster.spec).FREES_BLOBS:
        return False  # it closes them for moments, and restarts nothing
    one = Collection(cluster, members, GRACE)
    try:
        if not one.look_for_pending():
            return False
    except Error as error:
        reporter.note(f"it is not known whether pushes are open: {error}", level="warning")
        return False
    run(workflows.complete(one), cluster, reporter)
    return True


def one_by_one(
    members: Sequence[Member], connect: Connect, found: Mapping[blobs.Blob, int], grace: float
) -> blobs.Freed:
    """Delete those of *found* that no manifest needs and on which no push relied within *grace* seconds."""
    quiet = space.Quiet(members, grace)
    return blobs.free(connect, found, relied=quiet.relied, hold=quiet.hold, pace=blobs.Pace(slow=quiet.slow))


def _stored(leader: Member) -> int:
    return int(leader.do("stored")["stored"])


def _carry_out(one: Collection, reporter: Reporter, *, dry_run: bool) -> None:
    """Run all phases. If one fails, run the last ones, which open pushes."""
    cluster = one.cluster
    try:
        run(workflows.collect(one), cluster, reporter, dry_run=dry_run)
    except BaseException:
        if not dry_run and one.closed:
            reporter.note("opening pushes again", level="warning")
            try:
                run(workflows.reopen(one), cluster, reporter)
            except Error as error:
                reporter.note(
                    f"{error}; pushes reopen automatically within {one.seconds / 60:.0f} minutes", level="warning"
                )
        raise


def _tell(logs: Sequence[PushLog], members: Sequence[Member], grace: float, reporter: Reporter) -> None:
    now = datetime.now(UTC)
    for member, one in zip(members, logs, strict=True):
        if one.suppressed:
            reporter.note(
                "journald has dropped lines of its log: a push that found a blob there may have to be repeated",
                host=member.name, level="warning",
            )  # fmt: skip
        if one.begins is None or (now - one.begins).total_seconds() < grace:
            begins = "is empty" if one.begins is None else f"begins at {one.begins.isoformat()}"
            reporter.note(
                f"its log {begins}: a push that found a blob there before that, and is not done yet, may have to be "
                "repeated",
                host=member.name, level="warning",
            )  # fmt: skip
